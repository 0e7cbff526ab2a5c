//! Transport plans.

use crate::{Cost, Error, Result};

/// A sparse coupling: the pairs that carry mass.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    rows: usize,
    columns: usize,
    entries: Vec<(usize, usize, f64)>,
}

impl Plan {
    /// A plan from its entries (row, column, mass), sorted by row, then column.
    ///
    /// # Errors
    ///
    /// An entry outside `rows x columns`, or a mass that is not finite.
    ///
    /// # Example
    ///
    /// ```
    /// use retort_transport::Plan;
    /// let plan = Plan::new(2, 2, vec![(1, 0, 0.75), (0, 1, 0.25)])?;
    /// assert_eq!(plan.dense(), [0.0, 0.25, 0.75, 0.0]);
    /// assert_eq!(plan.row_sums(), [0.25, 0.75]);
    /// # Ok::<(), retort_transport::Error>(())
    /// ```
    pub fn new(rows: usize, columns: usize, mut entries: Vec<(usize, usize, f64)>) -> Result<Self> {
        for (index, &(i, j, mass)) in entries.iter().enumerate() {
            if i >= rows || j >= columns {
                let expected = format!("entries of a {rows} x {columns} matrix");
                return Err(Error::Shape { what: "plan".into(), expected, found: format!("entry ({i}, {j})") });
            }
            if !mass.is_finite() {
                return Err(Error::Value { what: "plan".into(), expected: "a finite mass", found: mass, index });
            }
        }
        entries.sort_by_key(|&(i, j, _)| (i, j));
        Ok(Self { rows, columns, entries })
    }

    /// A plan whose entries are known to be right and in order.
    pub(crate) fn sorted(rows: usize, columns: usize, entries: Vec<(usize, usize, f64)>) -> Self {
        debug_assert!(entries.is_sorted_by_key(|&(i, j, _)| (i, j)));
        Self { rows, columns, entries }
    }

    /// Number of sources.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of sinks.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The pairs (row, column, mass), sorted by row, then column.
    #[must_use]
    pub fn entries(&self) -> &[(usize, usize, f64)] {
        &self.entries
    }

    /// The whole matrix, row after row.
    #[must_use]
    pub fn dense(&self) -> Vec<f64> {
        let mut dense = vec![0.0; self.rows * self.columns];
        for &(i, j, mass) in &self.entries {
            dense[i * self.columns + j] += mass;
        }
        dense
    }

    /// The mass that leaves each source.
    #[must_use]
    pub fn row_sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.rows];
        self.entries.iter().for_each(|&(i, _, mass)| sums[i] += mass);
        sums
    }

    /// The mass that reaches each sink.
    #[must_use]
    pub fn column_sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        self.entries.iter().for_each(|&(_, j, mass)| sums[j] += mass);
        sums
    }

    /// `<P, C>`.
    pub(crate) fn total_cost(&self, cost: &Cost) -> f64 {
        self.entries.iter().map(|&(i, j, mass)| mass * cost.row(i)[j]).sum()
    }
}
