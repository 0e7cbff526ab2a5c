//! Files in the format before PyTorch 1.6, of strangers; and the plain values beside the weights, in both formats.

use crate::forge::{
    MAGIC, Pickle, SQUARE, View, counted, dict, keys, legacy_file, legacy_training, row, system, torch_file,
};
use crate::{Written, damaged, fixture, refused, survives};
use retort_nn::WeightFile;

/// `{"w": view}`, the reference to the storage with its sixth part.
fn object(view: &View<'_>, piece: &[u8]) -> Vec<u8> {
    Pickle::new().raw(b"}").text("w").view_of_piece(view, piece).raw(b"s").stop()
}

fn good() -> Vec<u8> {
    legacy_file(&object(&SQUARE, b"N"))
}

/// A file of one square and of these storages.
fn with_storages(count: i64, names: &[&str], storages: &[u8]) -> Vec<u8> {
    row(1001, &system(true, 4), &object(&View { count, ..SQUARE }, b"N"), &keys(names), storages)
}

fn read(bytes: &[u8]) -> Vec<f32> {
    let file = Written::new("good.pth", bytes);
    WeightFile::open(&file.path()).unwrap().tensor("w").unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Read in both formats, with a value behind the weights.
fn harmless(value: impl Fn(Pickle) -> Pickle) {
    let pickle = value(Pickle::new().raw(b"}").text("w").view(&SQUARE).raw(b"s").text("rest")).raw(b"s").stop();
    for file in [torch_file(&pickle), legacy_file(&pickle)] {
        assert_eq!(read(&file), [1.0, 2.0, 3.0, 4.0]);
    }
}

/// Refused in both.
fn harmful(value: impl Fn(Pickle) -> Pickle, parts: &[&str]) {
    let pickle = value(Pickle::new().raw(b"}").text("w").view(&SQUARE).raw(b"s").text("rest")).raw(b"s").stop();
    for file in [torch_file(&pickle), legacy_file(&pickle)] {
        refused(&file, parts);
    }
}

#[test]
fn the_forged_file_itself_is_good() {
    assert_eq!(read(&good()), [1.0, 2.0, 3.0, 4.0]);
    // The reference without its sixth part, and a second one to the same storage.
    assert_eq!(read(&legacy_file(&dict(&SQUARE))), [1.0, 2.0, 3.0, 4.0]);
    let twice = Pickle::new().raw(b"}").text("w").legacy_view(&SQUARE).raw(b"s").text("v").legacy_view(&SQUARE);
    assert_eq!(read(&legacy_file(&twice.raw(b"s").stop())), [1.0, 2.0, 3.0, 4.0]);
    let training = legacy_training(&[("w".into(), vec![3], vec![1.0, 2.0, 3.0]), ("v".into(), vec![0], vec![])]);
    assert_eq!(read(&training), [1.0, 2.0, 3.0]);
}

#[test]
fn files_that_are_cut_off() {
    for name in ["legacy.pth", "python2.pth", "legacy-training.pth"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        for length in 0..bytes.len() {
            refused(&bytes[..length], &[]);
        }
        refused(&[&bytes[..], b"\0"].concat(), &["1 bytes behind the last storage"]);
    }
    let bytes = good();
    refused(MAGIC, &["version's pickle", "cut off"]);
    refused(&bytes[..bytes.len() - 1], &["storage `0`", "4 float32 are more than the 15 bytes that are left"]);
    refused(&bytes[..bytes.len() - 17], &["storage `0`", "cut off at byte", "before its count"]);
}

#[test]
fn counts_that_lie() {
    let values = [1.0, 2.0, 3.0, 4.0];
    for stated in [0, 3, 5, 16, 1 << 63, u64::MAX] {
        refused(&with_storages(4, &["0"], &counted(stated, &values)), &["storage `0`", &format!("says {stated}")]);
    }
    // The pickle and the storage lie alike: more bytes than there are, than fit memory, than fit a number.
    for count in [5, 1 << 40, i64::MAX] {
        let file = with_storages(count, &["0"], &counted(count as u64, &values));
        refused(&file, &["storage `0`", &format!("{count} float32 are more than the 16 bytes that are left")]);
    }
    refused(&with_storages(-4, &["0"], &counted(4, &values)), &["a size of -4"]);
    refused(&with_storages(3, &["0"], &counted(3, &values[..3])), &["`w`", "more elements"]);
}

#[test]
fn storages_and_their_list() {
    let one = counted(4, &[1.0, 2.0, 3.0, 4.0]);
    let two = [one.clone(), one.clone()].concat();
    refused(&with_storages(4, &["0", "0"], &two), &["storage `0`: twice in the list"]);
    refused(&with_storages(4, &["0", "1"], &two), &["storage `1`: in the list of storages, but no tensor has it"]);
    refused(&with_storages(4, &[], &[]), &["storage `0`: a tensor has it, but it is not in the list"]);
    refused(&with_storages(4, &[], &one), &["storage `0`: a tensor has it, but it is not in the list"]);
    refused(&with_storages(4, &["0"], &two), &["24 bytes behind the last storage"]);
    let list = |keys: &[u8]| row(1001, &system(true, 4), &object(&SQUARE, b"N"), keys, &one);
    refused(&list(b"\x80\x02}."), &["no list"]);
    refused(&list(b"\x80\x02]K\x00a."), &["no text"]);
    // One storage as two types, or of two sizes.
    for other in [View { class: "IntStorage", ..SQUARE }, View { count: 5, ..SQUARE }] {
        let object = Pickle::new().raw(b"}").text("w").legacy_view(&SQUARE).raw(b"s").text("v").legacy_view(&other);
        refused(&legacy_file(&object.raw(b"s").stop()), &["storage `0` has 4 float32 once"]);
    }
    refused(&legacy_file(&object(&View { class: "QInt8Storage", ..SQUARE }, b"N")), &["`torch.QInt8Storage`"]);
}

#[test]
fn pieces_of_storages() {
    let piece = |start: i64, length: i64| Pickle(vec![]).raw(b"(").text("7").int(start).int(length).raw(b"t").0;
    let line = |shape: &'static [i64], offset| View { shape, strides: &[1], offset, ..SQUARE };
    assert_eq!(read(&legacy_file(&object(&line(&[2], 0), &piece(1, 2)))), [2.0, 3.0]);
    assert_eq!(read(&legacy_file(&object(&line(&[1], 2), &piece(1, 3)))), [4.0]);
    assert_eq!(read(&legacy_file(&object(&line(&[0], 0), &piece(4, 0)))), [0f32; 0]);
    // The tensor is in the storage, but not in its piece.
    refused(&legacy_file(&object(&line(&[3], 0), &piece(1, 2))), &["`w`", "more elements than its storage of 2"]);
    refused(&legacy_file(&object(&line(&[2], 1), &piece(0, 2))), &["`w`", "beyond a storage of 2 elements"]);
    for (start, length) in [(2, 3), (5, 0), (0, 5), (i64::MAX, i64::MAX)] {
        let place = format!("{length} elements from {start} on, is beyond its 4 elements");
        refused(&legacy_file(&object(&SQUARE, &piece(start, length))), &[&place]);
    }
    refused(&legacy_file(&object(&SQUARE, &piece(-1, 2))), &["a size of -1"]);
    refused(&legacy_file(&object(&SQUARE, b")")), &["key, offset and size"]);
    refused(&legacy_file(&object(&SQUARE, b"K\x01")), &["something else than a piece"]);
}

#[test]
fn headers() {
    let file = |version, system: &[u8]| {
        row(version, system, &object(&SQUARE, b"N"), &keys(&["0"]), &counted(4, &[1.0, 2.0, 3.0, 4.0]))
    };
    refused(&file(1000, &system(true, 4)), &["version 1000", "expected 1001"]);
    refused(&file(1001, &system(false, 4)), &["big-endian"]);
    refused(&file(1001, &system(true, 8)), &["type_sizes.long is 8, expected 4"]);
    refused(&file(1001, b"\x80\x02}."), &["sys_info: protocol_version"]);
    refused(&file(1001, b"\x80\x02]."), &["sys_info is no dict"]);
    let only = |entries: Pickle| file(1001, &entries.stop());
    let versioned = || Pickle::new().raw(b"}").text("protocol_version").int(1001).raw(b"s");
    refused(&only(versioned()), &["little_endian is not True"]);
    refused(&only(versioned().text("little_endian").raw(b"K\x01s")), &["little_endian is not True"]);
    let little = || versioned().text("little_endian").raw(b"\x88s");
    refused(&only(little()), &["type_sizes is no dict"]);
    refused(&only(little().text("type_sizes").raw(b"}s")), &["type_sizes.short is missing"]);
    // More than four kilobytes of facts.
    let long = Pickle::new().raw(b"}").text("little_endian").text(&"x".repeat(5000)).raw(b"s").stop();
    refused(&file(1001, &long), &["sys_info", "longer than"]);
    refused(&file(1001, &Pickle::new().raw(&[b'N'; 300]).stop()), &["sys_info", "more than 256 values"]);
    for at in 2..MAGIC.len() {
        let mut bytes = good();
        bytes[at] ^= 1;
        refused(&bytes, &["a pickle that does not begin as"]);
    }
    let mut bytes = good();
    bytes[MAGIC.len() + 1] = 4;
    refused(&bytes, &["version's pickle", "protocol 4"]);
}

#[test]
fn other_files_that_begin_alike() {
    let mut tar = vec![0; 1024];
    tar[..8].copy_from_slice(b"sys_info");
    tar[257..265].copy_from_slice(b"ustar  \0");
    refused(&tar, &["tar file", "before PyTorch 0.1.11"]);
    // The length of a header, 640, begins as a pickle does.
    let header = format!("{:<640}", r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#);
    assert_eq!(read(&crate::forge::safetensors(&header, 8)), [0.0, 0.0]);
}

#[test]
fn code_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    let command = format!("touch {}", marker.display());
    let call = |pickle: Pickle, module: &str, name: &str| pickle.global(module, name).text(&command).raw(b"\x85R");
    for (module, name) in [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval")] {
        let alone = call(Pickle::new(), module, name).stop();
        let parts = [&format!("`{module}.{name}`")[..], "nothing of the file was run"];
        let object = object(&SQUARE, b"N");
        let (keys, storage) = (keys(&["0"]), counted(4, &[1.0, 2.0, 3.0, 4.0]));
        refused(&[MAGIC, &alone[..]].concat(), &parts);
        refused(&row(1001, &alone, &object, &keys, &storage), &parts);
        refused(&legacy_file(&alone), &parts);
        refused(&row(1001, &system(true, 4), &object, &alone, &storage), &parts);
        // By every name that is known, and by attributes of options.
        harmful(|pickle| call(pickle.global("copy_reg", "_reconstructor"), module, name), &parts);
        harmful(|pickle| call(pickle.global("argparse", "Namespace").raw(b")\x81"), module, name).raw(b"b"), &parts);
    }
    assert!(!marker.exists(), "code of a weight file was run");
}

#[test]
fn options_are_read_over() {
    let options = |pickle: Pickle| pickle.global("argparse", "Namespace").raw(b")\x81");
    harmless(options);
    harmless(|pickle| options(pickle).raw(b"}").text("lr").raw(b"G\x3f\xb9\x99\x99\x99\x99\x99\x9asb"));
    harmless(|pickle| options(options(pickle).raw(b"}").text("inner")).raw(b"sb"));
    for (copy, builtin) in [("copy_reg", "__builtin__"), ("copyreg", "builtins")] {
        let function = |pickle: Pickle| pickle.global(copy, "_reconstructor");
        let made =
            |pickle| function(pickle).raw(b"(").global("argparse", "Namespace").global(builtin, "object").raw(b"NtR}b");
        harmless(made);
        let other = |pickle| {
            function(pickle).raw(b"(").global("collections", "OrderedDict").global(builtin, "object").raw(b"NtR")
        };
        harmful(other, &["something else than argparse.Namespace"]);
        harmful(|pickle| pickle.global(builtin, "object").raw(b")\x81"), &["something else than argparse.Namespace"]);
        harmful(|pickle| pickle.global(builtin, "object").raw(b")R"), &["a call"]);
    }
    harmful(|pickle| pickle.global("argparse", "Namespace").raw(b")R"), &["a call"]);
    harmful(|pickle| pickle.global("argparse", "Namespace").raw(b"N\x85\x81"), &["an instance"]);
    harmful(|pickle| pickle.global("collections", "OrderedDict").raw(b")\x81"), &["an instance"]);
    harmful(|pickle| options(pickle).raw(b"]b"), &["options that are no dict"]);
    harmful(|pickle| options(pickle).text("lr").raw(b"K\x01s"), &["no dict"]);
    harmful(|pickle| pickle.global("argparse", "ArgumentParser").raw(b")\x81"), &["`argparse.ArgumentParser`"]);
    // Weights are not looked for among options.
    let hidden = Pickle::new().raw(b"}").text("model").global("argparse", "Namespace").raw(b")\x81}").text("w");
    refused(&legacy_file(&hidden.legacy_view(&SQUARE).raw(b"sbs").stop()), &["no tensors", "`model`"]);
}

#[test]
fn numbers_of_numpy_are_read_over() {
    for core in ["numpy.core.multiarray", "numpy._core.multiarray"] {
        let scalar = |pickle: Pickle, code: &str| {
            let kind = pickle.global(core, "scalar").global("numpy", "dtype").text(code).raw(b"\x89\x88\x87R");
            kind.raw(b"(K\x03").text("<").raw(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")
        };
        let bytes = |pickle: Pickle, text: &str, encoding: &str| {
            pickle.global("_codecs", "encode").text(text).text(encoding).raw(b"\x86R\x86R")
        };
        let eight = "\0\0\0\0\0\u{e0}Q@";
        harmless(|pickle| bytes(scalar(pickle, "f8"), eight, "latin1"));
        harmless(|pickle| bytes(scalar(pickle, "b1"), "\u{1}", "latin1"));
        // As Python 2 writes the bytes, which may be UTF-8 or not.
        harmless(|pickle| scalar(pickle, "f8").raw(b"U\x08\0\0\0\0\0\xe0Q@\x86R"));
        harmless(|pickle| scalar(pickle, "f8").raw(b"T\x08\0\0\0\0\0\0\0\0\0Q@\x86R"));
        harmful(|pickle| scalar(pickle, "O8").raw(b"N\x86R"), &["the NumPy type `O8`"]);
        harmful(|pickle| scalar(pickle, "f4").raw(b"U\x08\0\0\0\0\0\xe0Q@\x86R"), &["of 4 bytes has 8"]);
        harmful(|pickle| scalar(pickle, "f8").raw(b"N\x86R"), &["without its bytes"]);
        harmful(|pickle| pickle.global(core, "scalar").raw(b"N").text("x").raw(b"\x86R"), &["without a type"]);
        harmful(|pickle| bytes(scalar(pickle, "f8"), eight, "rot13"), &["Latin-1"]);
        harmful(|pickle| bytes(scalar(pickle, "f8"), "\u{20ac}", "latin1"), &["not the bytes of a number"]);
        harmful(|pickle| bytes(scalar(pickle, "f8"), &"x".repeat(65), "latin1"), &["not the bytes of a number"]);
        harmful(|pickle| scalar(pickle, "f8").raw(b"}b"), &["attributes"]);
        harmful(|pickle| pickle.global(core, "_reconstruct").raw(b")R"), &[&format!("`{core}._reconstruct`")]);
    }
}

#[test]
fn what_python_2_writes() {
    let tensor = |pickle: Pickle, rest: &[u8]| {
        let storage = pickle.global("torch._utils", "_rebuild_tensor").raw(b"((U\x07storage");
        let storage = storage.global("torch", "FloatStorage").raw(b"U\x010U\x03cpu\x8a\x01\x04NtQ");
        storage.raw(rest).raw(b"tR")
    };
    // `_rebuild_tensor` of PyTorch 0.3, in an OrderedDict of a list of lists with attributes.
    let items = Pickle::new().global("collections", "OrderedDict").raw(b"](](U\x01w");
    let items = tensor(items, b"K\0K\x02K\x02\x86K\x02K\x01\x86").raw(b"e](U\x01vI01\nee");
    let state = items.raw(b"\x85R}U\x09_metadata}sb").stop();
    assert_eq!(read(&legacy_file(&state)), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read(&torch_file(&state)), [1.0, 2.0, 3.0, 4.0]);

    let parameter = Pickle::new().raw(b"}U\x01w").global("torch._utils", "_rebuild_parameter").raw(b"(");
    let parameter = tensor(parameter, b"K\0K\x04\x85K\x01\x85").raw(b"\x88}tRs").stop();
    assert_eq!(read(&legacy_file(&parameter)), [1.0, 2.0, 3.0, 4.0]);

    harmless(|pickle| pickle.raw(b"I1099511627776\n"));
    harmless(|pickle| pickle.raw(b"U\x02\xff\xfe"));
    harmful(|pickle| pickle.raw(b"I1e3\n"), &["`1e3` is no integer"]);
    harmful(|pickle| pickle.raw(b"I99999999999999999999\n"), &["is no integer"]);
    harmful(|pickle| tensor(pickle, b"K\0K\x04\x85"), &["a tuple of at least 4"]);
    for list in [&b"N"[..], b"](K\x01e", b"](](K\x01ee", b"](](K\x01K\x02K\x03ee"] {
        harmful(|pickle| pickle.global("collections", "OrderedDict").raw(list).raw(b"\x85R"), &["list of pairs"]);
    }
    refused(&legacy_file(b"\x80\x02T\xff\xff\xff\xffabc"), &["cut off"]);
}

#[test]
fn pickles_that_grow() {
    // A list of pairs, and one dict after the other made of it.
    let mut many = Pickle::new().global("collections", "OrderedDict").raw(b"q\0](NN\x86q\x01");
    for _ in 0..100_000 {
        many = many.raw(b"h\x01");
    }
    many = many.raw(b"e\x85q\x02R");
    for _ in 0..100_000 {
        many = many.raw(b"h\0h\x02R");
    }
    refused(&legacy_file(&many.stop()), &["more than 1048576 values"]);
    // A list that is a part of itself.
    let itself = row(1001, &system(true, 4), b"\x80\x02]q\0h\0ah\0a.", &keys(&[]), &[]);
    refused(&itself, &["no dict of tensors"]);
    // Nested beyond any stack.
    let mut deep = Pickle::new().raw(b"}").text("w").legacy_view(&SQUARE).raw(b"s").text("deep").raw(b"N");
    for _ in 0..1_000_000 {
        deep = deep.raw(b"\x85");
    }
    assert_eq!(read(&legacy_file(&deep.raw(b"s").stop())), [1.0, 2.0, 3.0, 4.0]);
    // A megabyte as a name of a storage, and a pickle of more than eight.
    let long = "x".repeat(1 << 20);
    refused(&legacy_file(&object(&View { storage: &long, ..SQUARE }, b"N")), &["not to a storage"]);
    refused(&legacy_file(&Pickle::new().raw(&vec![b'('; 9 << 20]).stop()), &["the object's pickle", "longer than"]);
    refused(&legacy_file(&Pickle::new().raw(&vec![b'('; 7 << 20]).stop()), &["the object's pickle"]);
    refused(&legacy_file(&Pickle::new().raw(b"I").raw(&vec![b'1'; 9 << 20]).stop()), &["longer than"]);
}

#[test]
fn damaged_files_never_panic() {
    survives(damaged(&good(), 3000));
    for name in ["legacy.pth", "legacy-training.pth", "python2.pth", "training.pth"] {
        survives(damaged(&std::fs::read(fixture(name)).unwrap(), 2000));
    }
    // Instructions in place of others.
    let bytes = std::fs::read(fixture("python2.pth")).unwrap();
    let end = bytes.windows(2).rposition(|window| window == b"e.").unwrap();
    let mut dice = crate::Dice(11);
    let instructions = b"}](\x81\x85\x86\x87tRQbsuae.qhcXUTINKJM\x8a\x00\x01\x88\xff";
    survives((0..4000).map(|_| {
        let mut copy = bytes.clone();
        for _ in 0..=dice.below(3) {
            let at = MAGIC.len() + dice.below(end - MAGIC.len());
            copy[at] = instructions[dice.below(instructions.len())];
        }
        copy
    }));
}
