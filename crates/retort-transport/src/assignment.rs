//! The linear assignment problem.

use crate::network::Network;
use crate::scan::{Smallest, relax, two_smallest};
use crate::{Certificate, Cost, Error, Result};
use std::cmp::Ordering;

/// No row or column.
const NONE: u32 = u32::MAX;
/// Scans for each row after which the network simplex takes over. Clouds need 10 to 50; where a few rows are the cheapest
/// for all columns it can be half as many as there are columns.
const SCANS: usize = 64;
/// Pivots for each row that it then may take; it needs 10 to 20.
const PIVOTS: usize = 1000;

/// A cheapest assignment with the duals that prove it.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The column of each row; none for the rows left over if there are more rows than columns.
    pub columns: Vec<Option<usize>>,
    /// Sum of the costs of all pairs.
    pub value: f64,
    /// A price per row.
    pub u: Vec<f64>,
    /// A price per column.
    pub v: Vec<f64>,
}

impl Assignment {
    /// The pairs (row, column), by row.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.columns.iter().enumerate().filter_map(|(i, j)| j.map(|j| (i, j)))
    }

    /// Checks the assignment against the matrix it was computed from, see [`Certificate`]; every pair has mass 1.
    ///
    /// In a rectangular problem a price of the longer side is the value of being allowed to stay alone, so it must not
    /// be positive: `worst_violation` covers that too.
    ///
    /// # Errors
    ///
    /// A matrix of another shape.
    pub fn certificate(&self, cost: &Cost) -> Result<Certificate> {
        let (expected, found) = ([self.u.len(), self.v.len()], [cost.rows(), cost.columns()]);
        if expected != found {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            return Err(Error::Shape { what: "cost matrix".into(), expected, found });
        }
        let (mut rows, mut columns) = (vec![0.0f64; cost.rows()], vec![0.0f64; cost.columns()]);
        for (i, j) in self.pairs() {
            rows[i] += 1.0;
            columns[j] += 1.0;
        }
        let primal = self.pairs().map(|(i, j)| cost.row(i)[j]).sum();
        let dual = self.u.iter().sum::<f64>() + self.v.iter().sum::<f64>();
        let mut worst_violation = crate::certificate::worst_violation(cost, &self.u, &self.v);
        let mut error = |sums: &[f64], prices: &[f64], may_stay: bool| {
            let lone = if may_stay { prices.iter().copied().fold(0.0, f64::max) } else { 0.0 };
            worst_violation = worst_violation.max(lone);
            sums.iter().map(|s| if may_stay { (s - 1.0).max(0.0) } else { (s - 1.0).abs() }).fold(0.0, f64::max)
        };
        let rows_error = error(&rows, &self.u, cost.rows() > cost.columns());
        let marginal_error = rows_error.max(error(&columns, &self.v, cost.columns() > cost.rows()));
        Ok(Certificate { primal, dual, gap: primal - dual, worst_violation, marginal_error })
    }
}

/// Gives every row its own column (or every column its own row, whichever there are fewer of) at the least total cost.
///
/// `min sum_i C[i, columns[i]]`, with prices such that `u_i + v_j <= C_ij` for all pairs and `=` for the chosen ones,
/// so that `sum u + sum v` equals the value: no assignment is cheaper. Prices of the longer side are at most 0, and 0 for
/// who stays alone. With ties any cheapest assignment is returned, always the same one. Costs may be negative.
///
/// Jonker and Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment problems":
/// column reduction, reduction transfer, augmenting row reduction, then shortest augmenting paths (Dijkstra on reduced
/// costs). Square problems on which these paths grow long go to the network simplex of [`transport`](crate::transport).
/// The rectangular form starts from prices 0, as in Crouse 2016, "On implementing 2D rectangular assignment algorithms".
///
/// # Example
///
/// ```
/// use retort_transport::{Cost, assignment};
/// let cost = Cost::new(vec![4.0, 1.0, 3.0, 2.0, 0.0, 5.0, 3.0, 2.0, 2.0], 3, 3)?;
/// let best = assignment(&cost);
/// assert_eq!(best.columns, [Some(1), Some(0), Some(2)]);
/// assert_eq!(best.value, 5.0);
/// assert_eq!(best.certificate(&cost)?.gap, 0.0);
/// # Ok::<(), retort_transport::Error>(())
/// ```
#[must_use]
pub fn assignment(cost: &Cost) -> Assignment {
    let (rows, columns) = (cost.rows(), cost.columns());
    let factor = cost.factor().unwrap_or(1.0);
    let scaled: Vec<f64>;
    let values = if factor == 1.0 {
        cost.values()
    } else {
        scaled = cost.values().iter().map(|c| c * factor).collect();
        &scaled
    };
    let Prices { chosen, mut u, mut v } = match rows.cmp(&columns) {
        Ordering::Less => rectangular(values, rows, columns),
        Ordering::Equal => square(values, rows),
        Ordering::Greater => {
            let turned: Vec<f64> = (0..rows * columns).map(|k| values[k % rows * columns + k / rows]).collect();
            let solved = rectangular(&turned, columns, rows);
            let mut chosen = vec![NONE; rows];
            solved.chosen.iter().zip(0..).for_each(|(&i, j)| chosen[i as usize] = j);
            Prices { chosen, u: solved.v, v: solved.u }
        }
    };
    u.iter_mut().chain(&mut v).for_each(|price| *price /= factor);
    let columns: Vec<_> = chosen.into_iter().map(|j| (j != NONE).then_some(j as usize)).collect();
    let value = columns.iter().enumerate().filter_map(|(i, j)| j.map(|j| cost.row(i)[j])).sum();
    Assignment { columns, value, u, v }
}

/// The column of each row, and the prices of rows and columns.
struct Prices {
    chosen: Vec<u32>,
    u: Vec<f64>,
    v: Vec<f64>,
}

fn square(cost: &[f64], n: usize) -> Prices {
    let mut matching = Matching::new(cost, n, n);
    let free = matching.reduce_columns();
    let free = matching.reduce_rows(free);
    let matched = matching.augment(&free, SCANS * n);
    if matched < free.len() {
        let ones = vec![1; n];
        let solved = Network::new(cost.to_vec(), &ones, &ones).solve(PIVOTS * n);
        if solved.converged {
            let mut chosen = vec![NONE; n];
            solved.flows.iter().for_each(|&(i, j, _)| chosen[i] = j as u32);
            return Prices { chosen, u: solved.u, v: solved.v };
        }
        matching.augment(&free[matched..], usize::MAX);
    }
    matching.prices()
}

/// Fewer rows than columns. Columns may stay unmatched, at price 0: none has another price before it is matched.
fn rectangular(cost: &[f64], rows: usize, columns: usize) -> Prices {
    let mut matching = Matching::new(cost, rows, columns);
    let free = matching.reduce_rows((0..rows as u32).rev().collect());
    matching.augment(&free, usize::MAX);
    matching.prices()
}

/// A partial assignment of rows to at least as many columns, with the prices of the columns.
///
/// Prices only ever fall. The price of a row is implied: that of a matched row is `cost - price` of its own column,
/// and no other column offers it less.
struct Matching<'a> {
    cost: &'a [f64],
    price: Vec<f64>,
    row_of: Vec<u32>,
    column_of: Vec<u32>,
}

impl<'a> Matching<'a> {
    fn new(cost: &'a [f64], rows: usize, columns: usize) -> Self {
        Self { cost, price: vec![0.0; columns], row_of: vec![NONE; columns], column_of: vec![NONE; rows] }
    }

    fn prices(self) -> Prices {
        let implied = |(i, &j): (u32, &u32)| self.row(i)[j as usize] - self.price[j as usize];
        let u = (0..).zip(&self.column_of).map(implied).collect();
        Prices { chosen: self.column_of, u, v: self.price }
    }

    fn row(&self, i: u32) -> &'a [f64] {
        let columns = self.price.len();
        &self.cost[i as usize * columns..][..columns]
    }

    fn pair(&mut self, i: u32, j: usize) {
        self.row_of[j] = i;
        self.column_of[i as usize] = j as u32;
    }

    /// Prices every column at its cheapest row and gives it to that row if it is still free; returns the free rows.
    fn reduce_columns(&mut self) -> Vec<u32> {
        let (rows, columns) = (self.column_of.len() as u32, self.price.len());
        self.price.copy_from_slice(&self.cost[..columns]);
        let mut cheapest = vec![0; columns];
        for (i, row) in (0..rows).zip(self.cost.chunks_exact(columns)) {
            for ((price, cheapest), &cost) in self.price.iter_mut().zip(&mut cheapest).zip(row) {
                let less = cost < *price;
                *price = if less { cost } else { *price };
                *cheapest = if less { i } else { *cheapest };
            }
        }
        let mut wanted = vec![0u32; rows as usize];
        for (j, &i) in cheapest.iter().enumerate().rev() {
            wanted[i as usize] += 1;
            if self.column_of[i as usize] == NONE {
                self.pair(i, j);
            }
        }
        for i in (0..rows).filter(|&i| wanted[i as usize] == 1) {
            self.transfer(i);
        }
        (0..rows).rev().filter(|&i| wanted[i as usize] == 0).collect()
    }

    /// Lowers the price of a matched column as far as its row still wants it, which makes it dear to the others.
    fn transfer(&mut self, i: u32) {
        let own = self.column_of[i as usize] as usize;
        let two = two_smallest(self.row(i), &self.price);
        let other = if two.column == own { two.second } else { two.value };
        // Infinite if there is one column only.
        if other.is_finite() {
            self.price[own] -= other - (self.row(i)[own] - self.price[own]);
        }
    }

    /// An auction: a free row takes its best column, bids down to what its second best offers, and frees the owner.
    ///
    /// Bids can become arbitrarily small, so their number is limited; what is left goes to the shortest paths.
    /// `free` is a stack.
    fn reduce_rows(&mut self, mut free: Vec<u32>) -> Vec<u32> {
        let mut bids = 2 * free.len();
        let mut left = Vec::new();
        while let Some(i) = free.pop() {
            if bids == 0 {
                left.push(i);
                continue;
            }
            bids -= 1;
            let two = two_smallest(self.row(i), &self.price);
            let lowered = self.price[two.column] - (two.second - two.value);
            let lowers = lowered.is_finite() && lowered < self.price[two.column];
            let j = if lowers { two.column } else { self.unowned(i, two) };
            let owner = self.row_of[j];
            if owner != NONE && !lowers {
                left.push(i);
                continue;
            }
            if owner != NONE {
                self.column_of[owner as usize] = NONE;
                free.push(owner);
            }
            if lowers {
                self.price[j] = lowered;
            }
            self.pair(i, j);
        }
        left
    }

    /// Among the equally good best columns of a row, one without an owner if there is one.
    fn unowned(&self, i: u32, best: Smallest) -> usize {
        if self.row_of[best.column] == NONE {
            return best.column;
        }
        let offers = self.row(i).iter().zip(&self.price).map(|(cost, price)| cost - price);
        let mut tied =
            offers.zip(&self.row_of).enumerate().filter(|(_, (x, owner))| *x == best.value && **owner == NONE);
        tied.next().map_or(best.column, |(j, _)| j)
    }

    /// Matches the free rows one by one along shortest alternating paths, until that has taken more than `scans`;
    /// returns how many it has matched.
    fn augment(&mut self, free: &[u32], mut scans: usize) -> usize {
        let mut paths = Paths { key: vec![0.0; self.price.len()], steps: Vec::new() };
        let mut open: Vec<u32> = (0..).zip(&self.row_of).filter(|(_, i)| **i == NONE).map(|(j, _)| j).collect();
        for (matched, &i) in free.iter().enumerate() {
            if scans == 0 {
                return matched;
            }
            let end = paths.search(self, &open, i);
            paths.flip(self, end);
            open.retain(|&j| j as usize != end.0);
            scans = scans.saturating_sub(paths.steps.len());
        }
        free.len()
    }
}

/// A row of the search tree.
struct Step {
    row: u32,
    /// Subtracted from its reduced costs to make them path lengths.
    offset: f64,
    /// The column through which it was reached, that column's distance, and its price, unless it is the start.
    column: usize,
    distance: f64,
    price: f64,
}

/// Dijkstra's search for the nearest unmatched column.
struct Paths {
    /// Length of the best path to each column; infinite again once the column is passed.
    key: Vec<f64>,
    steps: Vec<Step>,
}

impl Paths {
    /// The nearest unmatched column and its distance.
    ///
    /// Passed columns get the price -infinity, so that no scan looks at them again; [`Paths::flip`] puts the prices back.
    fn search(&mut self, matching: &mut Matching<'_>, open: &[u32], start: u32) -> (usize, f64) {
        self.key.fill(f64::INFINITY);
        self.steps.clear();
        self.steps.push(Step { row: start, offset: 0.0, column: 0, distance: 0.0, price: 0.0 });
        let (mut row, mut offset) = (start, 0.0);
        loop {
            let (distance, column) = relax(matching.row(row), &matching.price, offset, &mut self.key);
            if matching.row_of[column] == NONE {
                return (column, distance);
            }
            // A tie with an unmatched column ends the search as well.
            if let Some(&j) = open.iter().find(|&&j| self.key[j as usize] == distance) {
                return (j as usize, distance);
            }
            row = matching.row_of[column];
            let price = std::mem::replace(&mut matching.price[column], f64::NEG_INFINITY);
            offset = matching.row(row)[column] - price - distance;
            self.key[column] = f64::INFINITY;
            self.steps.push(Step { row, offset, column, distance, price });
        }
    }

    /// Moves every row of the path to its next column, and the prices of the passed columns down.
    ///
    /// The scans keep no predecessors: the row that gave a column its distance is the first whose reduced cost is that
    /// distance, bit for bit, and paths are short.
    fn flip(&self, matching: &mut Matching<'_>, end: (usize, f64)) {
        let passed = &self.steps[1..];
        passed.iter().for_each(|s| matching.price[s.column] = s.price);
        let (mut column, mut distance) = end;
        loop {
            let gives = |s: &&Step| matching.row(s.row)[column] - matching.price[column] - s.offset == distance;
            let step = self.steps.iter().find(gives).expect("a scanned row gave this distance");
            matching.pair(step.row, column);
            if step.row == self.steps[0].row {
                break;
            }
            (column, distance) = (step.column, step.distance);
        }
        passed.iter().for_each(|s| matching.price[s.column] += s.distance - end.1);
    }
}
