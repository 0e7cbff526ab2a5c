//! Writes files as `torch.save` does, and files as it never would.
#![allow(dead_code)] // other crates' tests use parts of it

/// A pickle, one instruction after the other.
#[derive(Clone)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    pub(crate) fn int(self, value: i64) -> Self {
        match i32::try_from(value) {
            Ok(narrow) => self.raw(b"J").raw(&narrow.to_le_bytes()),
            Err(_) => self.raw(&[0x8A, 8]).raw(&value.to_le_bytes()),
        }
    }

    pub(crate) fn sizes(self, values: &[i64]) -> Self {
        values.iter().fold(self.raw(b"("), |pickle, value| pickle.int(*value)).raw(b"t")
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// A view of a storage.
    pub(crate) fn view(self, view: &View<'_>) -> Self {
        self.view_of_piece(view, b"")
    }

    /// A view of a storage, as the format before PyTorch 1.6 has it.
    pub(crate) fn legacy_view(self, view: &View<'_>) -> Self {
        self.view_of_piece(view, b"N")
    }

    /// A view of what the last part of the reference to the storage says.
    pub(crate) fn view_of_piece(self, view: &View<'_>, piece: &[u8]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", view.class)
            .text(view.storage)
            .text("cpu")
            .int(view.count)
            .raw(piece)
            .raw(b"tQ")
            .int(view.offset)
            .sizes(view.shape)
            .sizes(view.strides)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }

    pub(crate) fn stop(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// What a view says about itself.
#[derive(Clone)]
pub(crate) struct View<'a> {
    pub(crate) class: &'a str,
    pub(crate) storage: &'a str,
    pub(crate) count: i64,
    pub(crate) offset: i64,
    pub(crate) shape: &'a [i64],
    pub(crate) strides: &'a [i64],
}

/// Two by two float32 in storage 0.
pub(crate) const SQUARE: View<'_> =
    View { class: "FloatStorage", storage: "0", count: 4, offset: 0, shape: &[2, 2], strides: &[2, 1] };

/// A state dict `{"w": view}`.
pub(crate) fn dict(view: &View<'_>) -> Vec<u8> {
    Pickle::new().raw(b"}").text("w").view(view).raw(b"s").stop()
}

/// An entry of a zip file.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) method: u16,
    /// Size that the headers claim.
    pub(crate) size: u32,
    /// 0: not computed.
    pub(crate) crc: u32,
}

pub(crate) fn entry(name: &str, bytes: &[u8]) -> Entry {
    Entry { name: format!("archive/{name}"), bytes: bytes.to_vec(), method: 0, size: bytes.len() as u32, crc: 0 }
}

/// A zip file.
pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let offset = archive.len() as u32;
        let mut fields = [20u16, 0, entry.method, 0, 0].map(u16::to_le_bytes).concat();
        fields.extend([entry.crc, entry.bytes.len() as u32, entry.size].map(u32::to_le_bytes).concat());
        fields.extend([entry.name.len() as u16, 0].map(u16::to_le_bytes).concat());
        archive.extend([&b"PK\x03\x04"[..], &fields, entry.name.as_bytes(), &entry.bytes].concat());
        directory.extend([&b"PK\x01\x02\x14\0"[..], &fields, &[0; 10], &offset.to_le_bytes()].concat());
        directory.extend(entry.name.as_bytes());
    }
    let start = archive.len() as u32;
    archive.extend(&directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    archive.extend([directory.len() as u32, start].map(u32::to_le_bytes).concat());
    archive.extend([0, 0]);
    archive
}

/// A file of float32 tensors, a storage each, as a bare state dict or under `container`.
pub(crate) fn state_dict(container: Option<&str>, tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let mut pickle = Pickle::new().raw(b"}");
    if let Some(container) = container {
        pickle = pickle.text("epoch").int(240).raw(b"s").text(container).raw(b"}");
    }
    let mut storages = Vec::new();
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let strides: Vec<i64> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let (storage, count) = (i.to_string(), values.len() as i64);
        let class = "FloatStorage";
        let view = View { class, storage: &storage, count, offset: 0, shape: &shape, strides: &strides };
        pickle = pickle.text(name).view(&view).raw(b"s");
        storages.push(entry(&format!("data/{storage}"), &floats(values)));
    }
    let pickle = if container.is_some() { pickle.raw(b"s") } else { pickle };
    zip(&[vec![entry("data.pkl", &pickle.stop())], storages].concat())
}

/// The facts about the machine that the format before PyTorch 1.6 begins with.
pub(crate) fn system(little_endian: bool, long: i64) -> Vec<u8> {
    let flag: &[u8] = if little_endian { b"\x88" } else { b"\x89" };
    let pickle = Pickle::new().raw(b"}(").text("protocol_version").int(1001).text("little_endian").raw(flag);
    let sizes = pickle.text("type_sizes").raw(b"}(").text("short").int(2).text("int").int(4).text("long").int(long);
    sizes.raw(b"uu").stop()
}

/// The keys of storages.
pub(crate) fn keys(names: &[&str]) -> Vec<u8> {
    names.iter().fold(Pickle::new().raw(b"]("), |pickle, name| pickle.text(name)).raw(b"e").stop()
}

pub(crate) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// A file in the format before PyTorch 1.6, of its parts.
pub(crate) fn row(version: i64, system: &[u8], object: &[u8], keys: &[u8], storages: &[u8]) -> Vec<u8> {
    [MAGIC, &Pickle::new().int(version).stop(), system, object, keys, storages].concat()
}

/// A count and the elements.
pub(crate) fn counted(count: u64, values: &[f32]) -> Vec<u8> {
    [count.to_le_bytes().to_vec(), floats(values)].concat()
}

/// A file in the format before PyTorch 1.6, of a pickle and of one storage of four float32.
pub(crate) fn legacy_file(object: &[u8]) -> Vec<u8> {
    row(1001, &system(true, 4), object, &keys(&["0"]), &counted(4, &[1.0, 2.0, 3.0, 4.0]))
}

/// What RepDistiller saves, in the format before PyTorch 1.6: options, and float32 tensors under `model`.
pub(crate) fn legacy_training(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let options = Pickle::new().raw(b"}").text("opt").global("argparse", "Namespace").raw(b")\x81}");
    let mut pickle = options.text("lr_decay_epochs").raw(b"](K\x96K\xb4K\xd2esbs").text("model");
    pickle = pickle.global("collections", "OrderedDict").raw(b")R");
    let (mut names, mut storages) = (Vec::new(), Vec::new());
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let strides: Vec<i64> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let (storage, count) = ((94_552_000 + 96 * i).to_string(), values.len() as i64);
        let class = "FloatStorage";
        let view = View { class, storage: &storage, count, offset: 0, shape: &shape, strides: &strides };
        pickle = pickle.text(name).legacy_view(&view).raw(b"s");
        storages.extend(counted(values.len() as u64, values));
        names.push(storage);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    row(1001, &system(true, 4), &pickle.raw(b"s").stop(), &keys(&names), &storages)
}

/// A file of a pickle and of one storage of four float32.
pub(crate) fn torch_file(pickle: &[u8]) -> Vec<u8> {
    zip(&[entry("data.pkl", pickle), entry("byteorder", b"little"), entry("data/0", &floats(&[1.0, 2.0, 3.0, 4.0]))])
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A safetensors file of a header and of zeros.
pub(crate) fn safetensors(header: &str, zeros: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + zeros, 0);
    file
}
