//! Figures as SVG: the one place that knows the plotting library.

use kuva::backend::svg::SvgBackend;
use kuva::plot::scatter::MarkerShape;
use kuva::prelude::{Layout, LinePlot, Plot, ScatterPlot};
use kuva::render::figure::Figure;

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mark {
    /// Dots of this radius.
    Dots(f64),
    /// Squares, for the second ten of a palette.
    Squares(f64),
    /// Joined in order.
    Line,
}

/// Points of one kind; kinds of the same name share a line of the legend.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Any CSS colour.
    pub(crate) color: &'static str,
    pub(crate) mark: Mark,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// Whether the axis is logarithmic; it is linear all the same where a value is not positive.
    pub(crate) log_x: bool,
    pub(crate) log_y: bool,
    pub(crate) series: Vec<Series>,
}

/// The ten colours of Tableau, for classes and methods.
pub(crate) const COLORS: [&str; 10] =
    ["#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"];

/// Panels in rows, with one legend for all.
#[derive(Clone, Debug)]
pub(crate) struct Sheet {
    pub(crate) title: String,
    /// Panels in a row, at least 1.
    pub(crate) columns: usize,
    /// Width and height of a panel in pixels.
    pub(crate) cell: [f64; 2],
    /// Whether all panels show the same part of the plane.
    pub(crate) same_axes: bool,
    pub(crate) panels: Vec<Panel>,
}

impl Sheet {
    /// An SVG document. Points that are not finite are left out.
    pub(crate) fn svg(&self) -> String {
        let panels = &self.panels;
        let rows = panels.len().div_ceil(self.columns);
        let all: Vec<&Panel> = panels.iter().collect();
        let (mut plots, mut layouts) = (Vec::new(), Vec::new());
        for panel in panels {
            let drawn: Vec<Plot> = panel.series.iter().map(plot).collect();
            layouts.push(layout(panel, if self.same_axes { &all } else { std::slice::from_ref(&panel) }, &drawn));
            plots.push(drawn);
        }
        let [width, height] = self.cell;
        let mut figure = Figure::new(rows, self.columns)
            .with_title(self.title.as_str())
            .with_title_size(16)
            .with_cell_size(width, height)
            .with_structure((0..panels.len()).map(|cell| vec![cell]).collect())
            .with_plots(plots)
            .with_layouts(layouts);
        if panels.iter().any(|panel| !panel.series.is_empty()) {
            figure = figure.with_shared_legend();
        }
        SvgBackend::new().render_scene(&figure.render())
    }
}

fn finite(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

fn plot(series: &Series) -> Plot {
    let points: Vec<(f64, f64)> = finite(&series.points).collect();
    let dots = |radius: f64, shape: MarkerShape| {
        let plot = ScatterPlot::new().with_data(points.clone()).with_color(series.color).with_size(radius);
        plot.with_marker(shape).with_legend(series.name.as_str()).into()
    };
    match series.mark {
        Mark::Dots(radius) => dots(radius, MarkerShape::Circle),
        Mark::Squares(radius) => dots(radius, MarkerShape::Square),
        Mark::Line => {
            LinePlot::new().with_data(points).with_color(series.color).with_legend(series.name.as_str()).into()
        }
    }
}

/// The axes of a panel, wide enough for the points of `shown`.
fn layout(panel: &Panel, shown: &[&Panel], plots: &[Plot]) -> Layout {
    let mut layout = Layout::auto_from_plots(plots)
        .with_title(panel.title.as_str())
        .with_x_label(panel.x.as_str())
        .with_y_label(panel.y.as_str())
        .with_title_size(12)
        .with_label_size(10)
        .with_tick_size(9);
    let points = || shown.iter().flat_map(|panel| &panel.series).flat_map(|series| finite(&series.points));
    if let Some(([low, high], log)) = range(points().map(|p| p.0), panel.log_x) {
        layout = layout.with_x_axis_min(low).with_x_axis_max(high);
        layout = if log { layout.with_log_x() } else { layout };
    }
    if let Some(([low, high], log)) = range(points().map(|p| p.1), panel.log_y) {
        layout = layout.with_y_axis_min(low).with_y_axis_max(high);
        layout = if log { layout.with_log_y() } else { layout };
    }
    layout
}

/// The ends of an axis, a little beyond its values, and whether it is logarithmic; none without two different values.
fn range(values: impl Iterator<Item = f64>, log: bool) -> Option<([f64; 2], bool)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low >= high {
        return None;
    }
    if log && low > 0.0 {
        let beyond = (high / low).powf(0.05);
        return Some(([low / beyond, high * beyond], true));
    }
    let beyond = 0.05 * (high - low);
    Some(([low - beyond, high + beyond], false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>, mark: Mark) -> Panel {
        let series = Series { name: "a < b & c".into(), color: COLORS[0], mark, points };
        let (title, x, y) = ("W2^2 <squared>".to_string(), "x".to_string(), "y".to_string());
        Panel { title, x, y, log_x: true, log_y: true, series: vec![series] }
    }

    fn svg(panels: Vec<Panel>, same_axes: bool) -> String {
        Sheet { title: "panels".into(), columns: 2, cell: [300.0, 240.0], same_axes, panels }.svg()
    }

    #[test]
    fn every_finite_point_is_drawn_and_text_is_escaped() {
        let points = vec![(1.0, 2.0), (f64::NAN, 1.0), (3.0, 4.0), (-1.0, 0.0)];
        let drawn = svg(vec![panel(points.clone(), Mark::Dots(3.0)), panel(points, Mark::Line)], true);
        assert!(drawn.contains("W2^2 &lt;squared&gt;") && drawn.contains("a &lt; b &amp; c"));
        assert_eq!(drawn.matches("<circle").count(), 3 + 1, "three points and one in the legend");
        assert!(!drawn.contains("NaN") && drawn.contains("</svg>"));
    }

    #[test]
    fn nothing_to_draw_is_no_failure() {
        let one = panel(vec![(1.0, 1.0)], Mark::Squares(2.0));
        for panels in [vec![], vec![panel(vec![], Mark::Line)], vec![one.clone()], vec![one.clone(), one.clone(), one]]
        {
            assert!(svg(panels, false).contains("</svg>"));
        }
    }

    #[test]
    fn axes_reach_a_little_beyond() {
        assert_eq!(range([0.0, 10.0].into_iter(), true), Some(([-0.5, 10.5], false)));
        let ([low, high], log) = range([1.0, 100.0].into_iter(), true).unwrap();
        assert!(log && low < 1.0 && low > 0.5 && high > 100.0 && high < 200.0);
        assert_eq!(range([3.0].into_iter(), false), None);
    }
}
