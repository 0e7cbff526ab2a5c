//! Complete data sets, which this repository does not hold.
//!
//! `RETORT_DATA=FOLDER cargo test -p retort-datasets -- --ignored` compares `FOLDER/fashion-mnist` and `FOLDER/cifar10` with
//! hashes that another program computed from the official files; a data set that is not there fails its test.

use std::path::PathBuf;

use super::sha256;
use retort_datasets::{Dataset, Split, load};

fn read(name: &str, split: Split) -> Dataset {
    let root = std::env::var_os("RETORT_DATA").expect("RETORT_DATA names the folder of the data sets");
    load(name, split, Some(&PathBuf::from(root).join(name))).unwrap()
}

fn check(name: &str, split: Split, pixels: &str, labels: &str) {
    let data = read(name, split);
    assert_eq!(sha256(data.pixels().unwrap()), pixels);
    let bytes: Vec<u8> = data.labels().iter().map(|&l| l as u8).collect();
    assert_eq!(sha256(&bytes), labels);
}

#[test]
#[ignore = "needs the complete data set: see the top of this file"]
fn fashion_mnist() {
    check(
        "fashion-mnist",
        Split::Train,
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    );
    check(
        "fashion-mnist",
        Split::Test,
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    );
}

#[test]
#[ignore = "needs the complete data set: see the top of this file"]
fn the_embedded_subset_is_the_first_rows_of_each_class() {
    for (split, n) in [(Split::Train, 8_000), (Split::Test, 2_000)] {
        let subset = read("fashion-mnist", split).take_balanced(n).unwrap();
        let embedded = load("fashion-mnist-10k", split, None).unwrap();
        assert_eq!(subset.digest(), embedded.digest());
    }
}

#[test]
#[ignore = "needs the complete data set: see the top of this file"]
fn cifar10() {
    check(
        "cifar10",
        Split::Train,
        "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    );
    check(
        "cifar10",
        Split::Test,
        "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    );
}
