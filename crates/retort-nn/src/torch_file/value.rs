//! What a pickle may speak of: plain values, tensors, and the names of Python that stand for them.

use super::{Element, View};
use candle_core::DType;
use std::sync::Arc;

/// A value by its number: a pickle may refer to one value many times, or make it part of itself.
pub(super) type Id = u32;

/// Nothing here can be called; what stands for a class or a function is only its name.
pub(super) enum Value {
    /// A number that is no size and no count; NumPy's numbers too.
    Other,
    None,
    Bool(bool),
    Int(i64),
    Text(Arc<str>),
    /// Bytes of a NumPy number, of which only the length matters.
    Bytes(usize),
    Global(Global),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Command line options (`argparse.Namespace`). No dict: weights are not looked for among options.
    Options,
    /// A number type of NumPy, by its bytes.
    NumberType(usize),
    Storage(Storage),
    Tensor(View),
}

/// A storage, or a part of one that PyTorch before 0.4 treated as a storage of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) element: Element,
    pub(super) name: Arc<str>,
    /// Elements of the whole storage.
    pub(super) count: usize,
    /// Where the part begins, and how many elements it has.
    pub(super) start: usize,
    pub(super) length: usize,
}

/// Everything of Python that is known by name: what state dicts and the plain values beside them are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    /// Before PyTorch 0.4: storage, offset, shape, strides.
    RebuildTensor,
    /// The same, then whether it takes gradients, and hooks.
    RebuildTensorV2,
    RebuildParameter,
    Storage(Element),
    /// `argparse.Namespace`.
    Options,
    /// `object`, and the function by which the protocols before 2 make an instance.
    Object,
    Reconstructor,
    /// `numpy.dtype`, and the function that makes a number of a type and bytes.
    NumberType,
    NumPyScalar,
    /// How protocol 2 writes the bytes of Python 3: as text in Latin-1.
    Encode,
}

impl Global {
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        let element = |name, size, float| Some(Self::Storage(Element { name, size, float }));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensorV2),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "FloatStorage") => element("float32", 4, Some(DType::F32)),
            ("torch", "DoubleStorage") => element("float64", 8, Some(DType::F64)),
            ("torch", "HalfStorage") => element("float16", 2, Some(DType::F16)),
            ("torch", "BFloat16Storage") => element("bfloat16", 2, Some(DType::BF16)),
            ("torch", "LongStorage") => element("int64", 8, None),
            ("torch", "IntStorage") => element("int32", 4, None),
            ("torch", "ShortStorage") => element("int16", 2, None),
            ("torch", "CharStorage") => element("int8", 1, None),
            ("torch", "ByteStorage") => element("uint8", 1, None),
            ("torch", "BoolStorage") => element("bool", 1, None),
            ("argparse", "Namespace") => Some(Self::Options),
            ("__builtin__" | "builtins", "object") => Some(Self::Object),
            ("copy_reg" | "copyreg", "_reconstructor") => Some(Self::Reconstructor),
            ("numpy", "dtype") => Some(Self::NumberType),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Some(Self::NumPyScalar),
            ("_codecs", "encode") => Some(Self::Encode),
            _ => None,
        }
    }
}

/// Bytes of NumPy's number types, by kind and size: bool, integers, floats and complex numbers. Everything else that a
/// NumPy scalar may be (an object, a record, a date) is none.
pub(super) fn number_size(code: &str) -> Option<usize> {
    match code {
        "b1" | "i1" | "u1" => Some(1),
        "i2" | "u2" | "f2" => Some(2),
        "i4" | "u4" | "f4" => Some(4),
        "i8" | "u8" | "f8" | "c8" => Some(8),
        "f16" | "c16" => Some(16),
        _ => None,
    }
}
