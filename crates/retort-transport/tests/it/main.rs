//! Tests of the public interface.
#![allow(missing_docs)]

mod assignment;
mod clouds;
mod coral;
mod energy;
mod gaussian;
mod gromov;
mod line;
mod mmd;
mod sinkhorn;
mod sliced;
mod transport;
mod wasserstein;
