use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use super::{DataError, Result};

/// 32 bytes of BLAKE3: what a cache was computed from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of files, in the order of their names, those of one name as given: the weights of a model and whatever else its
    /// numbers depend on. Where they lie does not matter, nor what they are called as long as their order is the same.
    ///
    /// # Errors
    /// [`Io`](DataError::Io).
    pub fn of_files<P: AsRef<Path>>(files: &[P]) -> Result<Self> {
        let mut files: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
        files.sort_by_key(|file| file.file_name());
        let mut whole = blake3::Hasher::new();
        for file in files {
            let io = |source| DataError::Io { file: PathBuf::from(file), source };
            // Of each by itself, so that no two lists of files run together to the same bytes.
            let mut own = blake3::Hasher::new();
            own.update_reader(File::open(file).map_err(io)?).map_err(io)?;
            whole.update(own.finalize().as_bytes());
        }
        Ok(Self::from(whole.finalize()))
    }

    /// Of a prompt's tokens, as they are without a response.
    pub(super) fn of_prompt(tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"prefopt prompt 1");
        tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
        hasher.finalize().into()
    }

    /// The first 8 bytes.
    pub(super) fn head(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}
