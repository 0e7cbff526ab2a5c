//! A primal network simplex for the transportation problem.

use crate::scan::{smallest, two_smallest};

/// An arc enters the tree if its reduced cost is below minus this share of the largest cost: above the rounding of
/// prices, which are sums along paths of the tree.
const TOLERANCE: f64 = 1.0 / (1u64 << 46) as f64;
/// Rows that are searched before the best arc found in them enters.
const BLOCK: usize = 2;

/// What the simplex found.
pub(crate) struct Solved {
    /// Row, column and flow of the pairs with a flow.
    pub(crate) flows: Vec<(usize, usize, i128)>,
    pub(crate) u: Vec<f64>,
    pub(crate) v: Vec<f64>,
    pub(crate) pivots: usize,
    pub(crate) converged: bool,
}

/// A spanning tree of rows and columns with the flows on its arcs; nodes are the rows, then the columns.
///
/// Supplies and demands are multiplied by `2n + 1`, then every row gets one unit more to deliver to the last column.
/// This small perturbation keeps every flow of every tree positive: each pivot lowers the total cost, so none repeats,
/// and it is too small to change which trees are feasible.
///
/// The tree is kept in depth-first order, in which a subtree is one contiguous piece: moving it moves a slice, and a
/// node is below another if it lies in its piece.
pub(crate) struct Network {
    rows: usize,
    columns: usize,
    /// Every row has its minimum taken off.
    cost: Vec<f64>,
    row_minima: Vec<f64>,
    /// `-u_i` of rows, `v_j` of columns: a subtree changes by the same amount throughout.
    price: Vec<f64>,
    parent: Vec<u32>,
    /// Flow between a node and its parent, always from the row to the column.
    flow: Vec<i128>,
    /// Nodes in the subtree.
    size: Vec<u32>,
    /// Nodes in depth-first order, and the place of each in it.
    order: Vec<u32>,
    place: Vec<u32>,
    /// A subtree in its new order.
    moved: Vec<u32>,
}

impl Network {
    /// A first tree for positive supplies and demands of equal sum.
    pub(crate) fn new(mut cost: Vec<f64>, supply: &[i128], demand: &[i128]) -> Self {
        let (rows, columns) = (supply.len(), demand.len());
        let zeros = vec![0.0; columns];
        let mut row_minima = Vec::with_capacity(rows);
        for row in cost.chunks_exact_mut(columns) {
            let (minimum, _) = smallest(row, &zeros);
            row.iter_mut().for_each(|c| *c -= minimum);
            row_minima.push(minimum);
        }
        let nodes = rows + columns;
        let mut network = Self {
            rows,
            columns,
            cost,
            row_minima,
            price: vec![0.0; nodes],
            parent: vec![0; nodes],
            flow: vec![0; nodes],
            size: vec![1; nodes],
            order: Vec::with_capacity(nodes),
            place: vec![0; nodes],
            moved: Vec::new(),
        };
        let factor = network.factor();
        let supply = supply.iter().map(|s| s * factor + 1).collect();
        let mut demand: Vec<i128> = demand.iter().map(|d| d * factor).collect();
        demand[columns - 1] += rows as i128;
        let arcs = network.greedy(supply, demand);
        network.plant(&arcs);
        network.price_tree();
        network
    }

    fn factor(&self) -> i128 {
        2 * self.rows as i128 + 1
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.cost[i * self.columns..][..self.columns]
    }

    /// A feasible tree: the rows with most to lose choose first, the cheapest column that still has demand.
    ///
    /// Every choice uses up a row or a column, only the last uses up both, so the arcs form a tree.
    fn greedy(&self, mut supply: Vec<i128>, mut demand: Vec<i128>) -> Vec<(usize, usize, i128)> {
        let mut dual = self.row(0).to_vec();
        for row in self.cost.chunks_exact(self.columns) {
            dual.iter_mut().zip(row).for_each(|(d, &c)| *d = if c < *d { c } else { *d });
        }
        let loss = |i| {
            let two = two_smallest(self.row(i), &dual);
            two.second - two.value
        };
        let mut order: Vec<_> = (0..self.rows).map(|i| (i, loss(i))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut arcs = Vec::with_capacity(self.rows + self.columns - 1);
        for (i, _) in order {
            while supply[i] > 0 {
                let (_, j) = smallest(self.row(i), &dual);
                let flow = supply[i].min(demand[j]);
                arcs.push((i, j, flow));
                supply[i] -= flow;
                demand[j] -= flow;
                if demand[j] == 0 {
                    dual[j] = f64::NEG_INFINITY;
                }
            }
        }
        arcs
    }

    /// Sets up the tree with the last column as its root.
    fn plant(&mut self, arcs: &[(usize, usize, i128)]) {
        let mut neighbours = vec![Vec::new(); self.rows + self.columns];
        for &(i, j, flow) in arcs {
            neighbours[i].push((self.rows + j, flow));
            neighbours[self.rows + j].push((i, flow));
        }
        let root = neighbours.len() - 1;
        self.parent[root] = root as u32;
        let mut stack = vec![root];
        while let Some(node) = stack.pop() {
            self.place[node] = self.order.len() as u32;
            self.order.push(node as u32);
            let parent = self.parent[node] as usize;
            for &(child, flow) in neighbours[node].iter().filter(|(child, _)| *child != parent) {
                self.parent[child] = node as u32;
                self.flow[child] = flow;
                stack.push(child);
            }
        }
        for &node in self.order[1..].iter().rev() {
            self.size[self.parent[node as usize] as usize] += self.size[node as usize];
        }
    }

    /// Prices from the root down: no arc of the tree costs more or less than its ends pay.
    fn price_tree(&mut self) {
        for &node in &self.order[1..] {
            let (node, parent) = (node as usize, self.parent[node as usize] as usize);
            let cost = self.cost[node.min(parent) * self.columns + node.max(parent) - self.rows];
            self.price[node] = self.price[parent] + if node < self.rows { -cost } else { cost };
        }
    }

    /// Pivots until no arc is cheaper than its ends pay, or `max_pivots`.
    pub(crate) fn solve(mut self, max_pivots: usize) -> Solved {
        let tolerance = TOLERANCE * self.cost.iter().fold(0.0f64, |a, &b| a.max(b));
        let (mut pivots, mut next, mut converged) = (0, 0, false);
        while !converged {
            let Some((row, column)) = self.entering(&mut next, tolerance) else {
                // Not before it holds for prices without the rounding of many pivots.
                self.price_tree();
                converged = self.entering(&mut next, tolerance).is_none();
                continue;
            };
            if pivots == max_pivots {
                break;
            }
            self.pivot(row, self.rows + column);
            pivots += 1;
            // Every pivot adds to the rounding of some prices.
            if pivots % self.order.len() == 0 {
                self.price_tree();
            }
        }
        self.price_tree();
        let u = self.price[..self.rows].iter().zip(&self.row_minima).map(|(price, minimum)| minimum - price).collect();
        Solved { flows: self.flows(), u, v: self.price[self.rows..].to_vec(), pivots, converged }
    }

    /// The best arc of the first block that has one that pays, from row `next` on.
    fn entering(&self, next: &mut usize, tolerance: f64) -> Option<(usize, usize)> {
        let (rows, columns) = self.price.split_at(self.rows);
        let mut best = (-tolerance, None);
        for searched in 1..=self.rows {
            let i = *next;
            *next = (i + 1) % self.rows;
            let (cost, j) = smallest(self.row(i), columns);
            if cost + rows[i] < best.0 {
                best = (cost + rows[i], Some((i, j)));
            }
            if searched % BLOCK == 0 && best.1.is_some() {
                break;
            }
        }
        best.1
    }

    /// Sends flow around the cycle that the arc closes, until the flow of another arc of the cycle is used up.
    fn pivot(&mut self, row: usize, column: usize) {
        let top = self.join(row, column);
        let blocking = |(node, lowers): (usize, bool)| lowers.then(|| (self.flow[node], node));
        let below_row = self.climb(row, top).filter_map(|node| blocking((node, node < self.rows))).min();
        let below_column = self.climb(column, top).filter_map(|node| blocking((node, node >= self.rows))).min();
        // The perturbation leaves no ties.
        let row_side = below_column.is_none_or(|c| below_row.is_some_and(|r| r.0 < c.0));
        let (change, leaving) = if row_side { below_row } else { below_column }.expect("a cycle has arcs both ways");

        self.send(row, top, change);
        self.send(column, top, -change);
        let excess = self.cost[row * self.columns + column - self.rows] + self.price[row] - self.price[column];
        if row_side {
            self.hang(row, column, leaving, top, change, -excess);
        } else {
            self.hang(column, row, leaving, top, change, excess);
        }
    }

    /// The lowest node that has both below it.
    fn join(&self, node: usize, other: usize) -> usize {
        let place = self.place[other];
        let mut top = node;
        while place < self.place[top] || place >= self.place[top] + self.size[top] {
            top = self.parent[top] as usize;
        }
        top
    }

    /// The nodes from `node` up to below `top`.
    fn climb(&self, node: usize, top: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(node), |&node| Some(self.parent[node] as usize)).take_while(move |&node| node != top)
    }

    /// Takes `change` off the flows from rows up and adds it to those from columns up.
    fn send(&mut self, mut node: usize, top: usize, change: i128) {
        while node != top {
            self.flow[node] += if node < self.rows { -change } else { change };
            node = self.parent[node] as usize;
        }
    }

    /// Cuts the subtree at `leaving`, turns it so that `node` is on top, and hangs it below `target`.
    fn hang(&mut self, node: usize, target: usize, leaving: usize, top: usize, flow: i128, price: f64) {
        let moved = self.size[leaving];
        let old = self.place[leaving] as usize..(self.place[leaving] + moved) as usize;
        self.resize(self.parent[leaving] as usize, top, moved.wrapping_neg());
        self.resize(target, top, moved);
        self.turn(node, target, leaving, flow);
        for &node in &self.moved {
            self.price[node as usize] += price;
        }
        // Right behind the target; what lies between old and new place makes room.
        let target = self.place[target] as usize;
        let changed = if target < old.start {
            self.order.copy_within(target + 1..old.start, target + 1 + old.len());
            self.order[target + 1..][..old.len()].copy_from_slice(&self.moved);
            target + 1..old.end
        } else {
            self.order.copy_within(old.end..target + 1, old.start);
            self.order[target + 1 - old.len()..][..old.len()].copy_from_slice(&self.moved);
            old.start..target + 1
        };
        for (place, &node) in changed.clone().zip(&self.order[changed]) {
            self.place[node as usize] = place as u32;
        }
    }

    /// Adds to the sizes from `node` up to below `top`.
    fn resize(&mut self, mut node: usize, top: usize, by: u32) {
        while node != top {
            self.size[node] = self.size[node].wrapping_add(by);
            node = self.parent[node] as usize;
        }
    }

    /// Reverses the path from `node` up to `leaving` and writes the subtree down in its new order: each node of the path
    /// with everything below it, except what came before.
    fn turn(&mut self, node: usize, target: usize, leaving: usize, flow: i128) {
        let all = self.size[leaving];
        self.moved.clear();
        let (mut node, mut parent, mut flow) = (node, target, flow);
        let mut done = self.place[node] as usize..self.place[node] as usize;
        loop {
            let start = self.place[node] as usize;
            let piece = start..start + self.size[node] as usize;
            self.moved.extend_from_slice(&self.order[start..done.start]);
            self.moved.extend_from_slice(&self.order[done.end..piece.end]);
            self.size[node] = all - done.len() as u32;
            done = piece;
            let above = std::mem::replace(&mut self.parent[node], parent as u32) as usize;
            flow = std::mem::replace(&mut self.flow[node], flow);
            if node == leaving {
                return;
            }
            (node, parent) = (above, node);
        }
    }

    /// The flows without the perturbation, which is between `-rows` and `rows`, and without the arcs that it alone keeps.
    fn flows(&self) -> Vec<(usize, usize, i128)> {
        let flow = |&node: &u32| {
            let (node, parent) = (node as usize, self.parent[node as usize] as usize);
            let flow = (self.flow[node] + self.rows as i128) / self.factor();
            (flow > 0).then(|| (node.min(parent), node.max(parent) - self.rows, flow))
        };
        self.order[1..].iter().filter_map(flow).collect()
    }
}
