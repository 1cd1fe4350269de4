//! A folder that is a libtorch of the right version, checked.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;

use super::wheels::{Flavour, VERSION};

/// Exists only for a folder that torch-sys can build against.
#[derive(Debug)]
pub struct Libtorch {
    folder: PathBuf,
    flavour: Flavour,
}

/// Why a folder is not what is needed.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    Missing(&'static str),
    Version(String),
}

impl Flaw {
    /// The error for the folder that this name led to.
    pub fn of(self, named_by: &'static str, folder: &Path) -> Error {
        let folder = folder.to_owned();
        match self {
            Self::Missing(missing) => Error::NotLibtorch { named_by, folder, missing },
            Self::Version(found) => Error::WrongVersion { named_by, folder, found },
        }
    }
}

impl Libtorch {
    pub fn at(folder: &Path) -> Result<Self, Flaw> {
        if !folder.join("include/torch/csrc/api/include/torch/torch.h").is_file() {
            return Err(Flaw::Missing("include/torch/csrc/api/include/torch/torch.h"));
        }
        if !["so", "dylib", "a"].iter().any(|kind| folder.join(format!("lib/libtorch_cpu.{kind}")).is_file()) {
            return Err(Flaw::Missing("lib/libtorch_cpu.so"));
        }
        // torch-sys's own way out.
        if env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none() {
            let found = version(folder).ok_or(Flaw::Missing("build-version"))?;
            if !is_needed(&found) {
                return Err(Flaw::Version(found));
            }
        }
        let cuda = folder.join("lib/libtorch_cuda.so").is_file();
        Ok(Self { folder: folder.to_owned(), flavour: if cuda { Flavour::Cuda } else { Flavour::Cpu } })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn flavour(&self) -> Flavour {
        self.flavour
    }
}

/// PyTorch's Python package and some distributions have no build-version; the header is everywhere.
fn version(folder: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let header = fs::read_to_string(folder.join("include/torch/headeronly/version.h"));
    let header = header.or_else(|_| fs::read_to_string(folder.join("include/torch/csrc/api/include/torch/version.h")));
    version_in_header(&header.ok()?)
}

fn version_in_header(header: &str) -> Option<String> {
    let part = |name| {
        let mut defines = header.lines().filter_map(|line| line.strip_prefix("#define "));
        defines.find_map(|define| define.strip_prefix(name)?.trim().parse::<u32>().ok())
    };
    let [major, minor, patch] =
        [part("TORCH_VERSION_MAJOR ")?, part("TORCH_VERSION_MINOR ")?, part("TORCH_VERSION_PATCH ")?];
    Some(format!("{major}.{minor}.{patch}"))
}

/// A suffix such as `+cpu` or `+cu130` says how it was built, not what it is.
fn is_needed(version: &str) -> bool {
    version.split_once('+').map_or(version, |(number, _)| number) == VERSION
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Enough of a libtorch to pass the checks.
    pub fn pretend(folder: &Path, version: &str) -> std::io::Result<()> {
        fs::create_dir_all(folder.join("include/torch/csrc/api/include/torch"))?;
        fs::create_dir_all(folder.join("lib"))?;
        fs::write(folder.join("include/torch/csrc/api/include/torch/torch.h"), "")?;
        fs::write(folder.join("lib/libtorch_cpu.so"), "")?;
        fs::write(folder.join("build-version"), version)
    }

    #[test]
    fn suffixes_are_fine_and_other_versions_are_not() {
        assert!(is_needed("2.13.0"));
        assert!(is_needed("2.13.0+cpu"));
        assert!(is_needed("2.13.0+cu130"));
        assert!(!is_needed("2.13.1"));
        assert!(!is_needed("2.13.0a0"));
        assert!(!is_needed(""));
    }

    #[test]
    fn the_header_tells_the_version_too() {
        let header = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 13\n\n#define TORCH_VERSION_PATCH 0\n";
        assert_eq!(version_in_header(header).as_deref(), Some("2.13.0"));
        assert_eq!(version_in_header("#define TORCH_VERSION_MAJOR 2\n"), None);
    }

    #[test]
    fn a_folder_is_checked_for_headers_library_and_version() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let torch = folder.path().join("torch");
        let flaw = |torch: &Path| Libtorch::at(torch).err();
        assert_eq!(flaw(&torch), Some(Flaw::Missing("include/torch/csrc/api/include/torch/torch.h")));
        pretend(&torch, "2.9.1+cpu\n")?;
        assert_eq!(flaw(&torch), Some(Flaw::Version("2.9.1+cpu".to_owned())));
        fs::write(torch.join("build-version"), "2.13.0\n")?;
        assert_eq!(Libtorch::at(&torch).map(|found| found.flavour()), Ok(Flavour::Cpu));
        fs::write(torch.join("lib/libtorch_cuda.so"), "")?;
        assert_eq!(Libtorch::at(&torch).map(|found| found.flavour()), Ok(Flavour::Cuda));
        fs::remove_file(torch.join("lib/libtorch_cpu.so"))?;
        assert_eq!(flaw(&torch), Some(Flaw::Missing("lib/libtorch_cpu.so")));
        Ok(())
    }
}
