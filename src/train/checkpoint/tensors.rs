use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    path::Path,
};

use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};
use tch::{Device, Kind, Tensor};

use super::CheckpointError;
use crate::{Result, train::file::FileError};

/// Named tensors, in the order of their names.
pub(super) type Named = BTreeMap<String, Tensor>;

/// The kinds that both sides know.
const KINDS: [(Kind, Dtype); 15] = [
    (Kind::Uint8, Dtype::U8),
    (Kind::Int8, Dtype::I8),
    (Kind::Int16, Dtype::I16),
    (Kind::Int, Dtype::I32),
    (Kind::Int64, Dtype::I64),
    (Kind::Half, Dtype::F16),
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::ComplexFloat, Dtype::C64),
    (Kind::Bool, Dtype::BOOL),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Float8e5m2, Dtype::F8_E5M2),
    (Kind::Float8e4m3fn, Dtype::F8_E4M3),
    (Kind::Float8e5m2fnuz, Dtype::F8_E5M2FNUZ),
    (Kind::Float8e4m3fnuz, Dtype::F8_E4M3FNUZ),
];

/// Elements that are copied to the host's memory at once.
const CHUNK: i64 = 1 << 22;

/// As safetensors, tensor by tensor: what is in memory twice is a chunk of one, or one that is not on the CPU.
pub(super) fn write(tensors: &Named, path: &Path, out: &mut dyn Write) -> Result<()> {
    let mut listed = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let known = KINDS.iter().find(|(known, _)| *known == kind);
        let (_, dtype) = known.ok_or_else(|| CheckpointError::Kind { name: name.clone(), kind })?;
        listed.push((name, *dtype, tensor));
    }
    // Wide kinds first, so that every tensor is aligned, and then by name: the order of the format's own writer.
    listed.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let (mut infos, mut offset) = (Vec::with_capacity(listed.len()), 0);
    for (name, dtype, tensor) in &listed {
        let end = offset + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        infos.push(((*name).clone(), TensorInfo { dtype: *dtype, shape, data_offsets: (offset, end) }));
        offset = end;
    }
    // What PyTorch's readers look for.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let malformed = |source| CheckpointError::Tensors { path: path.to_owned(), source };
    let metadata = Metadata::new(Some(format), infos).map_err(malformed)?;
    let mut header = serde_json::to_vec(&metadata)
        .map_err(|source| CheckpointError::Tensors { path: path.to_owned(), source: source.into() })?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(FileError::at("write", path))?;
    out.write_all(&header).map_err(FileError::at("write", path))?;
    for (_, _, tensor) in listed {
        data(tensor, path, out)?;
    }
    Ok(())
}

fn data(tensor: &Tensor, path: &Path, out: &mut dyn Write) -> Result<()> {
    let host = tensor.detach().f_to_device(Device::Cpu)?.f_resolve_conj()?.f_resolve_neg()?.f_contiguous()?;
    let (flat, width) = (host.f_view([-1_i64])?, host.kind().elt_size_in_bytes());
    let (numel, mut start, mut buffer) = (flat.numel() as i64, 0, Vec::new());
    while start < numel {
        let length = CHUNK.min(numel - start);
        let elements = length as usize;
        buffer.resize(elements * width, 0);
        flat.f_narrow(0, start, length)?.f_copy_data_u8(&mut buffer, elements)?;
        out.write_all(&buffer).map_err(FileError::at("write", path))?;
        start += length;
    }
    Ok(())
}

/// What [`write`] has written, `length` bytes. Memory is taken for what the header promises only once that fits the length.
pub(super) fn read(path: &Path, length: u64, from: &mut dyn Read) -> Result<Named> {
    let malformed = |source| CheckpointError::Tensors { path: path.to_owned(), source };
    let mut size = [0; 8];
    from.read_exact(&mut size).map_err(FileError::at("read", path))?;
    let size = u64::from_le_bytes(size);
    if size > length.saturating_sub(8) {
        return Err(malformed(SafeTensorError::InvalidHeaderLength).into());
    }
    let mut header = vec![0; size as usize];
    from.read_exact(&mut header).map_err(FileError::at("read", path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| malformed(SafeTensorError::InvalidHeaderDeserialization(e)))?;
    if metadata.data_len() as u64 != length - 8 - size {
        return Err(malformed(SafeTensorError::MetadataIncompleteBuffer).into());
    }
    let mut tensors = Named::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("a name of its own list");
        let known = KINDS.iter().find(|(_, known)| *known == info.dtype);
        let (kind, _) = known.ok_or_else(|| malformed(SafeTensorError::TensorInvalidInfo))?;
        let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        from.read_exact(&mut bytes).map_err(FileError::at("read", path))?;
        tensors.insert(name, Tensor::f_from_data_size(&bytes, &shape, *kind)?);
    }
    Ok(tensors)
}
