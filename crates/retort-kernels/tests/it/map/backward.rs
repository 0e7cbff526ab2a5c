//! The backward pass as candle drives it.

use candle_core::{DType, Tensor, Var, backprop::GradStore};
use retort_kernels::*;

use super::ops::Ops;
use super::{NONE, RELU, map};
use crate::support::{bits, difference, random};

/// A small network with every kind of operation, up to two results.
struct Network {
    vars: Vec<Var>,
    image: Var,
}

impl Network {
    fn new(batch: usize, dtype: DType) -> Self {
        let var = |t: Tensor| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap();
        let shapes: [&[usize]; 8] =
            [&[32, 3, 3, 3], &[48, 32, 3, 3], &[48, 1, 3, 3], &[17, 48, 3, 3], &[17, 48, 1, 1], &[32], &[48], &[17]];
        let vars = shapes.iter().zip(1..).map(|(shape, salt)| var(random(shape.to_vec(), salt))).collect();
        Self { vars, image: var(random((batch, 3, 10, 9), 9)) }
    }

    /// The last maps of the two branches.
    fn maps(&self) -> [FeatureMap; 2] {
        let v: Vec<&Tensor> = self.vars.iter().map(Var::as_tensor).collect();
        let x = map(&self.image).conv3(v[0]).train(v[5], v[5], RELU).largest(Pool2dSpec::new(3, 2, 1));
        let y = x.conv3(v[1]).train(v[6], v[6], RELU);
        let y = y.conv(v[2], None, Some(&y), RELU, Conv2dSpec::new(1, 1).with_groups(48));
        let strided = y.conv(v[3], Some(v[7]), None, NONE, Conv2dSpec::new(2, 1)).train(v[7], v[7], NONE);
        let pooled = y.conv(v[4], None, None, NONE, Conv2dSpec::new(1, 0)).averaged(Pool2dSpec::new(2, 2, 1), false);
        [strided.plus(&pooled, RELU), pooled]
    }

    fn losses(&self) -> [Tensor; 2] {
        self.maps().map(|m| m.global().sqr().unwrap().sum_all().unwrap())
    }

    fn gradients(&self, loss: &Tensor) -> Vec<Option<Vec<u64>>> {
        self.of(&loss.backward().unwrap())
    }

    fn of(&self, grads: &GradStore) -> Vec<Option<Vec<u64>>> {
        self.vars.iter().chain([&self.image]).map(|v| grads.get(v).map(bits)).collect()
    }
}

#[test]
fn a_graph_serves_several_backward_passes() {
    let network = Network::new(2, DType::F32);
    // Each loss alone on a graph of its own.
    let alone = [0, 1].map(|i| network.gradients(&network.losses()[i]));
    assert!(alone[0].iter().all(Option::is_some));
    assert!(alone[1][3].is_none(), "the second branch does not depend on the strided convolution");
    let losses = network.losses();
    for i in [0, 1, 1, 0, 0] {
        assert_eq!(network.gradients(&losses[i]), alone[i]);
    }
    // The sum of both, on the same graph: the gradients gather.
    let both = (&losses[0] + &losses[1]).unwrap().backward().unwrap();
    for (i, var) in network.vars.iter().enumerate() {
        let parts = losses.each_ref().map(|l| l.backward().unwrap().get(var).cloned());
        let expected = parts.into_iter().flatten().reduce(|a, b| (a + b).unwrap()).unwrap();
        let d = difference(both.get(var).unwrap(), &expected);
        assert!(d < 1e-5, "variable {i}: {d}");
    }
}

#[test]
fn what_is_not_used_changes_nothing() {
    let network = Network::new(2, DType::F32);
    let expected = network.gradients(&network.losses()[0]);
    let maps = network.maps();
    let unused = maps[1].conv3(&random((17, 17, 3, 3), 1).to_dtype(DType::F32).unwrap()).positive();
    let loss = maps[0].global().sqr().unwrap().sum_all().unwrap();
    assert_eq!(network.gradients(&loss), expected);
    drop(unused);
    assert_eq!(network.gradients(&loss), expected);
}

#[test]
fn detached_maps_have_no_history() {
    let vars = [[2, 17, 4, 4], [17, 17, 3, 3]].map(|d| Var::from_tensor(&random(d.to_vec(), 1)).unwrap());
    let v = random(17, 3);
    let (x, w) = (vars[0].as_tensor(), vars[1].as_tensor());
    for lazy in [false, true] {
        let y = map(x).conv3(w);
        let y = if lazy { y.train(&v, &v, RELU) } else { y };
        let cut = y.detach().unwrap();
        assert!(y.track_op() && !cut.track_op() && !cut.tensor().track_op());
        assert_eq!((cut.dims(), cut.dtype()), ([2, 17, 4, 4], DType::F64));
        assert_eq!(bits(&cut.tensor()), bits(&y.tensor()));
        assert!(!cut.train(&v, &v, RELU).conv(&w.detach(), None, Some(&cut), RELU, Conv2dSpec::new(1, 1)).track_op());
        // One factor with and one without history, read by operations on the same numbers.
        let of = |m: &FeatureMap| {
            let both = m.plus(&cut, RELU).conv(&w.detach(), None, Some(&cut), NONE, Conv2dSpec::new(1, 1));
            (both.plus(&cut.train(&v, &v, NONE), NONE).global() * cut.global()).unwrap().backward().unwrap()
        };
        let grads = of(&y);
        let constant = cut.tensor();
        let z = relu(&(y.tensor() + &constant).unwrap()).unwrap().conv3(&w.detach());
        let z = ((z + &constant).unwrap() + constant.train(&v, &v, NONE)).unwrap();
        let expected = (z.global() * constant.global()).unwrap().backward().unwrap();
        for var in &vars {
            assert!(difference(grads.get(var).unwrap(), expected.get(var).unwrap()) < 1e-10, "lazy {lazy}");
        }
        // Only the weight of what follows.
        let grads = cut.conv3(w).global().backward().unwrap();
        assert!(grads.get(&vars[0]).is_none() && grads.get(&vars[1]).is_some());
    }
}

/// Winograd's algorithm with stride 2, and with a weight gradient that is large enough to be summed over all images at
/// once.
#[test]
fn threads_change_no_bit_of_large_weight_gradients() {
    let var =
        |shape: &[usize], salt| Var::from_tensor(&random(shape.to_vec(), salt).to_dtype(DType::F32).unwrap()).unwrap();
    let vars = [var(&[5, 32, 13, 14], 1), var(&[128, 32, 3, 3], 2), var(&[128, 128, 3, 3], 3)];
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let x = map(&vars[0]).conv(vars[1].as_tensor(), None, None, RELU, Conv2dSpec::new(2, 1));
            let loss = x.conv3(vars[2].as_tensor()).global().sqr().unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            vars.each_ref().map(|v| bits(grads.get(v).unwrap()))
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}

/// So many images that their patches wait in several rounds.
#[test]
fn large_weight_gradients_of_many_images_are_the_sums_of_their_parts() {
    let numbers = |shape: &[usize], salt| random(shape.to_vec(), salt).to_dtype(DType::F32).unwrap();
    let w = Var::from_tensor(&numbers(&[112, 112, 3, 3], 1)).unwrap();
    let (x, dy) = (numbers(&[1000, 112, 3, 3], 2), numbers(&[1000, 112, 3, 3], 3));
    let gradient = |first: usize, count: usize| {
        let part = |t: &Tensor| t.narrow(0, first, count).unwrap();
        let y = map(&part(&x)).conv3(w.as_tensor()).tensor();
        let grads = (y * part(&dy)).unwrap().sum_all().unwrap().backward().unwrap();
        grads.get(&w).unwrap().clone()
    };
    let parts = (gradient(0, 500) + gradient(500, 500)).unwrap();
    assert!(difference(&gradient(0, 1000), &parts) < 1e-5);
}

#[test]
fn threads_and_released_memory_change_no_bit() {
    let network = Network::new(13, DType::F32);
    let run = |between: fn()| {
        let losses = network.losses();
        between();
        let loss = (&losses[0] + &losses[1]).unwrap();
        between();
        (bits(&loss), network.gradients(&loss), network.gradients(&losses[1]))
    };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(|| {}))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(3));
    assert_eq!(one, run(release_memory));
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while waiting.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                release_memory()
            }
        });
        assert_eq!(one, run(|| {}));
        drop(done);
    });
}

#[test]
fn nothing_is_recorded_without_gradients() {
    let network = Network::new(2, DType::F32);
    let expected = network.maps().map(|m| bits(&m.tensor()));
    let maps = no_grad(|| network.maps());
    assert!(maps.iter().all(|m| !m.track_op() && !m.tensor().track_op()));
    assert_eq!(maps.map(|m| bits(&m.tensor())), expected);
    assert!(network.maps().iter().all(FeatureMap::track_op));
}
