//! Safetensors files, read as data: every size is compared with the file before anything is taken by it.

use crate::torch_file::shown;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};
use std::collections::BTreeMap;

/// An open file. Its tensors cover the bytes behind the header without gap or overlap: the format demands it.
pub(crate) struct SafetensorsFile {
    bytes: Vec<u8>,
    /// Where the bytes of the tensors begin.
    data: usize,
    header: Metadata,
}

impl SafetensorsFile {
    /// Reads the header and checks it against the file.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        let explain = |error| match (error, claimed(&bytes)) {
            (SafeTensorError::HeaderTooSmall, _) => "shorter than the length of its header".into(),
            (SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength, Some(header)) => {
                format!("a header of {header} bytes was announced")
            }
            (SafeTensorError::InvalidOffset(name), _) => {
                format!("the bytes of `{}` overlap with another tensor's, or leave a gap", shown(&name))
            }
            (SafeTensorError::MetadataIncompleteBuffer, _) => "its tensors need another number of bytes".into(),
            (SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow, _) => {
                "a tensor's shape and type do not fit the number of its bytes".into()
            }
            (other, _) => shown(&other.to_string()),
        };
        let refuse = |error| format!("not a whole safetensors file ({} bytes): {}", bytes.len(), explain(error));
        let (length, header) = SafeTensors::read_metadata(&bytes).map_err(refuse)?;
        Ok(Self { data: size_of::<u64>() + length, bytes, header })
    }

    /// Names, types and shapes, in the order of the names.
    pub(crate) fn infos(&self) -> BTreeMap<String, &TensorInfo> {
        self.header.tensors().into_iter().collect()
    }

    /// An entry of the header's metadata.
    pub(crate) fn note(&self, key: &str) -> Option<&String> {
        self.header.metadata().as_ref()?.get(key)
    }

    /// A copy of one tensor in its own type.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, String> {
        let info = self.header.info(name).ok_or_else(|| format!("`{}` is missing", shown(name)))?;
        let (from, to) = info.data_offsets;
        let bytes = &self.bytes[self.data..][from..to];
        // Types of less than a byte are stored by candle without ever being read as numbers.
        let known = matches!(info.dtype, Dtype::U8 | Dtype::U32 | Dtype::I16 | Dtype::I32 | Dtype::I64)
            || float(info.dtype).is_some();
        let dtype = DType::try_from(info.dtype).ok().filter(|_| known);
        let dtype = dtype
            .ok_or_else(|| format!("`{}` is of type {}, which is not read", shown(name), type_name(info.dtype)))?;
        Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu).map_err(|e| format!("`{}`: {e}", shown(name)))
    }
}

/// The length that the file gives its header.
pub(crate) fn claimed(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|length| u64::from_le_bytes(*length))
}

/// The type to read it in, for numbers that a weight may be.
pub(crate) fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

/// PyTorch's name of the type, where it has one.
pub(crate) fn type_name(dtype: Dtype) -> String {
    let name = match dtype {
        Dtype::BOOL => "bool",
        Dtype::U8 => "uint8",
        Dtype::I8 => "int8",
        Dtype::I16 => "int16",
        Dtype::I32 => "int32",
        Dtype::I64 => "int64",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        other => return format!("{other:?}"),
    };
    name.into()
}
