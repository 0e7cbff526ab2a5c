//! PyTorch files that nobody should open: each is refused by name, at once, and nothing of it is run.

use crate::forge::{Entry, Pickle, SQUARE, View, dict, entry, floats, torch_file, zip};
use crate::{damaged, fixture, refused, survives};
use flate2::write::DeflateEncoder;
use std::io::Write;

fn view(change: impl FnOnce(&mut View<'static>)) -> Vec<u8> {
    let mut view = SQUARE;
    change(&mut view);
    torch_file(&dict(&view))
}

#[test]
fn the_forged_file_itself_is_good() {
    let file = crate::Written::new("good.pth", &view(|_| ()));
    let read = retort_nn::WeightFile::open(&file.path()).unwrap().tensor("w").unwrap();
    assert_eq!(read.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
}

#[test]
fn code_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    let command = format!("touch {}", marker.display());
    let call = |pickle: Pickle, module: &str, name: &str| pickle.global(module, name).text(&command).raw(b"\x85R");
    for (module, name) in [("os", "system"), ("posix", "system"), ("builtins", "exec"), ("torch.hub", "load")] {
        let asked = format!("`{module}.{name}`");
        let alone = call(Pickle::new(), module, name).stop();
        // As a value, as a key, in a list and behind the tensors of an innocent dict.
        let start = || Pickle::new().raw(b"}").text("w").view(&SQUARE).raw(b"s").text("epoch");
        let value = call(start(), module, name).raw(b"s").stop();
        let nested = call(start().raw(b"](").text("deep").raw(b"}("), module, name).raw(b"N\x88ueusb").stop();
        let key = call(start().raw(b"0"), module, name).raw(b"Ns").stop();
        // Named and never called.
        let named = start().global(module, name).raw(b"s").stop();
        for pickle in [alone, value, nested, named] {
            refused(&torch_file(&pickle), &[&asked, "nothing of the file was run"]);
        }
        refused(&torch_file(&key), &["nothing of the file was run"]);
        // By the other instructions that call: INST, OBJ, NEWOBJ, and the global of protocol 4.
        let inst = Pickle::new().raw(b"(").text(&command).raw(format!("i{module}\n{name}\n").as_bytes()).stop();
        let stack_global = Pickle::new().text(module).text(name).raw(b"\x93").text(&command).raw(b"\x85R").stop();
        for pickle in [inst, stack_global] {
            refused(&torch_file(&pickle), &["nothing of the file was run"]);
        }
        let object = Pickle::new().raw(b"(").global(module, name).text(&command).raw(b"o").stop();
        refused(&torch_file(&object), &[&asked]);
    }
    assert!(!marker.exists(), "code of a weight file was run");
}

#[test]
fn what_is_known_is_not_called_otherwise() {
    let state = |pickle: Pickle| torch_file(&pickle.raw(b"s").stop());
    let start = || Pickle::new().raw(b"}").text("w");
    // A storage as a function, a dict made of something, a call of a text, a tensor of a tuple, attributes of a tensor.
    refused(&state(start().global("torch", "FloatStorage").raw(b")R")), &["byte", "call"]);
    refused(&state(start().global("collections", "OrderedDict").raw(b"N\x85R")), &["call"]);
    refused(&state(start().text("print").raw(b")R")), &["no function"]);
    refused(&state(start().global("torch._utils", "_rebuild_tensor_v2").raw(b")R")), &["tuple"]);
    refused(&state(start().global("torch._utils", "_rebuild_parameter").raw(b"N\x85R")), &["parameter"]);
    refused(&state(start().view(&SQUARE).raw(b"}b")), &["attributes"]);
    refused(&state(start().raw(b"NQ")), &["tuple"]);
    refused(&torch_file(&[0x80, 4, b'}', b'.']), &["protocol 4"]);
}

#[test]
fn malformed_programs() {
    for pickle in
        [&b"\x80\x02"[..], b"\x80", b"", b"\x80\x02X\xff\xff\xff\xffabc", b"\x80\x02cos", b"\x80\x02\x8a\xff\x01"]
    {
        refused(&torch_file(pickle), &["cut off"]);
    }
    for pickle in [
        &b"\x80\x02t."[..],
        b"\x80\x02u.",
        b"\x80\x02R.",
        b"\x80\x02s.",
        b"\x80\x02.",
        b"\x80\x02(R.",
        b"\x80\x02N(\x85.",
    ] {
        refused(&torch_file(pickle), &["data.pkl"]);
    }
    for pickle in [&b"\x80\x02q\x00."[..], b"\x80\x02h\x07.", b"\x80\x02j\xff\xff\xff\xff."] {
        refused(&torch_file(pickle), &["remember"]);
    }
    refused(&torch_file(b"\x80\x02N."), &["no dict of tensors"]);
    refused(&torch_file(b"\x80\x02}."), &["no tensors", "none"]);
    refused(&torch_file(b"\x80\x02}X\x01\x00\x00\x00\xffNs."), &["UTF-8"]);
    refused(&torch_file(b"\x80\x02}(Nu."), &["without a value"]);
    let twice = Pickle::new().raw(b"}").text("w").view(&SQUARE).raw(b"s").text("w").view(&SQUARE).raw(b"s").stop();
    refused(&torch_file(&twice), &["`w`", "twice"]);
    let one = |key: &str| Pickle::new().text(key).raw(b"}").text("w").view(&SQUARE).raw(b"s").0[2..].to_vec();
    let two = Pickle::new().raw(b"}(").raw(&one("model")).raw(&one("net")).raw(b"u").stop();
    refused(&torch_file(&two), &["several state dicts", "`model`", "`net`"]);
    let training = Pickle::new().raw(b"}").text("epoch").int(3).raw(b"s").stop();
    refused(&torch_file(&training), &["no tensors", "`epoch`"]);
}

#[test]
fn pickles_that_grow() {
    // Nested far beyond any stack, twice each level through the memo: two to the power of a million values if copied.
    let mut deep = Pickle::new().raw(b")q\0");
    for _ in 0..400_000 {
        deep = deep.raw(b"h\0h\0\x86q\0");
    }
    refused(&torch_file(&deep.stop()), &["no dict of tensors"]);
    // One key, long, and referred to again and again.
    let long = "x".repeat(1 << 20);
    let mut repeated = Pickle::new().raw(b"}").text("w").view(&SQUARE).raw(b"s(").text(&long).raw(b"q\0N");
    for _ in 0..500_000 {
        repeated = repeated.raw(b"h\0h\0");
    }
    refused(&torch_file(&repeated.raw(b"u").stop()), &["a key of 1048576 bytes", "xxx..."]);
    // A storage's name, a shape.
    let mut named = Pickle::new().raw(b"}").text("w").raw(b"((").text("storage").global("torch", "FloatStorage");
    named = named.text(&long).text("cpu").int(4).raw(b"tQ");
    refused(&torch_file(&named.stop()), &["not to a storage"]);
    let mut flat = Pickle::new().raw(b"}").text("w").global("torch._utils", "_rebuild_tensor_v2").raw(b"((");
    flat =
        flat.text("storage").global("torch", "FloatStorage").text("0").text("cpu").int(4).raw(b"tQ").int(0).raw(b"(");
    for _ in 0..500_000 {
        flat = flat.raw(b"K\x01");
    }
    refused(&torch_file(&flat.raw(b"tq\0h\0\x89NtRs").stop()), &["500000 dimensions"]);
    // More values, and more bytes, than a state dict has.
    refused(&torch_file(&Pickle::new().raw(&vec![b'N'; 2 << 20]).stop()), &["more than 1048576 values"]);
    refused(&torch_file(&Pickle::new().raw(&vec![b'('; 9 << 20]).stop()), &["data.pkl has 9437187 bytes"]);
    refused(&torch_file(&Pickle::new().raw(&vec![b'('; 7 << 20]).stop()), &["data.pkl"]);
}

#[test]
fn tensors_that_do_not_lie_in_their_storage() {
    let beyond = "reach beyond a storage of 4 elements";
    refused(&view(|v| v.offset = 1), &["`w`", beyond]);
    refused(&view(|v| v.strides = &[3, 1]), &["`w`", beyond]);
    refused(&view(|v| v.strides = &[i64::MAX, i64::MAX]), &["`w`", beyond]);
    refused(&view(|v| v.offset = i64::MAX), &["`w`", beyond]);
    refused(&view(|v| (v.shape, v.strides, v.offset) = (&[0], &[1], 5)), &["`w`", beyond]);
    refused(&view(|v| v.shape = &[5, 1]), &["`w`", "more elements"]);
    // Ten gigabytes, as a view with strides of zero, and as a storage.
    refused(&view(|v| (v.shape, v.strides) = (&[1 << 20, 2560], &[0, 0])), &["`w`", "more elements"]);
    refused(&view(|v| (v.shape, v.strides) = (&[i64::MAX, i64::MAX, 0], &[1, 1, 1])), &["`w`", "more elements"]);
    refused(&view(|v| v.count = 2_684_354_560), &["`w`", "2684354560 float32", "16 bytes"]);
    refused(&view(|v| v.count = i64::MAX), &["`w`", "16 bytes"]);
    refused(&view(|v| v.class = "DoubleStorage"), &["`w`", "4 float64", "16 bytes"]);
    for negative in
        [view(|v| v.offset = -1), view(|v| v.strides = &[-2, 1]), view(|v| v.count = -4), view(|v| v.shape = &[-1])]
    {
        refused(&negative, &["a size of -"]);
    }
    refused(&view(|v| v.strides = &[1]), &["`w`", "strides [1]"]);
    refused(&view(|v| v.storage = "1"), &["`w`", "data/1", "missing"]);
    refused(&view(|v| v.storage = "../../../etc/passwd"), &["`w`", "missing"]);
    refused(&view(|v| v.class = "QInt8Storage"), &["`torch.QInt8Storage`"]);
}

#[test]
fn values_that_are_not_finite() {
    let archive = |values: &[f32]| zip(&[entry("data.pkl", &dict(&SQUARE)), entry("data/0", &floats(values))]);
    refused(&archive(&[1.0, f32::NAN, 2.0, f32::INFINITY]), &["`w`: 2 of 4 values are not finite", "the first at 1"]);
    let wide = View { class: "DoubleStorage", ..SQUARE };
    let storage: Vec<u8> = [0.0, 1.0, 1e300, 2.0f64].iter().flat_map(|value| value.to_le_bytes()).collect();
    refused(&zip(&[entry("data.pkl", &dict(&wide)), entry("data/0", &storage)]), &["`w`: 1 of 4", "the first at 2"]);
}

#[test]
fn archives_that_are_none() {
    let good = view(|_| ());
    for length in [4, 30, good.len() / 2, good.len() - 23, good.len() - 1] {
        refused(&good[..length], &["zip file"]);
    }
    refused(&[], &["empty"]);
    refused(&vec![0; 1000], &["neither safetensors nor", "0000000000000000"]);
    refused(b"\x80\x02]q\x00.", &["a pickle that does not begin as those of torch.save"]);
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", &["Git LFS"]);
    refused(b"<!DOCTYPE html><html>", &["web page"]);
    refused(b"\x89HDF\r\n\x1a\n and so on", &["neither safetensors nor"]);
    refused(&zip(&[entry("weights.txt", b"1 2 3")]), &["data.pkl"]);
    refused(&zip(&[entry("data.pkl", b"\x80\x02."), entry("data.pkl", b"\x80\x02.")]), &["twice"]);
    refused(&zip(&[entry("data.pkl", b"\x80\x02."), entry("constants.pkl", b"")]), &["TorchScript"]);
    let odd = zip(&[entry("data.pkl", &dict(&SQUARE)), entry("byteorder", b"middle"), entry("data/0", &[0; 16])]);
    refused(&odd, &["byte order `middle`"]);
    let folder = tempfile::tempdir().unwrap();
    let message = retort_nn::WeightFile::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("is a folder"), "{message}");
    let message = retort_nn::WeightFile::open(&folder.path().join("nothing.pth")).err().unwrap().to_string();
    assert!(message.contains("nothing.pth") && message.contains("cannot read"), "{message}");
}

#[test]
fn zip_bombs() {
    let mut deflated = DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    (0..64).for_each(|_| deflated.write_all(&zeros).unwrap());
    let bytes = deflated.finish().unwrap();
    let bomb = Entry { method: 8, size: 64 << 20, ..entry("data/0", &bytes) };
    let big = View { count: 16 << 20, shape: &[16 << 20], strides: &[1], ..SQUARE };
    refused(&zip(&[entry("data.pkl", &dict(&big)), bomb.clone()]), &["data/0", "compressed"]);
    refused(&zip(&[Entry { name: "archive/data.pkl".into(), ..bomb }]), &["data.pkl", "compressed"]);
    // Stored, but with a larger size than there are bytes.
    let liar = Entry { size: u32::MAX - 1, ..entry("data/0", &[0; 16]) };
    refused(&zip(&[entry("data.pkl", &dict(&SQUARE)), liar]), &["data/0", "two different sizes"]);
    // Two entries that share their bytes.
    let mut archive = zip(&[entry("data.pkl", &dict(&SQUARE)), entry("data/0", &[7; 16]), entry("data/1", &[7; 16])]);
    let at = |archive: &[u8], what: &[u8]| archive.windows(what.len()).rposition(|window| window == what).unwrap();
    let (first, second) = (at(&archive, b"archive/data/0"), at(&archive, b"archive/data/1"));
    let header: [u8; 4] = archive[first - 4..first].try_into().unwrap();
    archive[second - 4..second].copy_from_slice(&header);
    refused(&archive, &["overlap"]);
}

#[test]
fn damaged_files_never_panic() {
    survives(damaged(&view(|_| ()), 3000));
    survives(damaged(&std::fs::read(fixture("no-crc.pth")).unwrap(), 3000));
    // The pickle alone, so that the damage is behind the archive.
    let views = std::fs::read(fixture("bare.pth")).unwrap();
    let from = views.windows(3).position(|window| window == b"\x80\x02c").unwrap();
    let pickle = &views[from..from + views[from..].windows(2).position(|window| window == b"b.").unwrap() + 2];
    let mut dice = crate::Dice(7);
    let instructions = b"}](\x85\x86\x87tRQbsuae.qhcXNKJM\x8a\x00\x01\xff";
    survives((0..3000).map(|_| {
        let mut copy = pickle.to_vec();
        for _ in 0..=dice.below(3) {
            let at = dice.below(copy.len());
            copy[at] = instructions[dice.below(instructions.len())];
        }
        torch_file(&copy)
    }));
}
