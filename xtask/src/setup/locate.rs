//! The libtorch that the user's environment names, if it names one.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

use super::libtorch::Libtorch;
use super::link::Link;

/// Where pip's or conda's torch lies. Importing it would take seconds.
const FIND_TORCH: &str = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0])";

pub struct Named {
    pub libtorch: Libtorch,
    /// The variable that names it.
    pub named_by: &'static str,
}

/// In torch-sys's order: LIBTORCH_USE_PYTORCH, whatever its value, comes before LIBTORCH, so the LIBTORCH that
/// .cargo/config.toml sets does not stand in its way.
pub fn named_by_user(root: &Path) -> Result<Option<Named>> {
    let (named_by, folder) = if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        ("LIBTORCH_USE_PYTORCH", pytorch()?)
    } else {
        match env::var_os("LIBTORCH") {
            Some(folder) if !is_our_link(&folder, root) => ("LIBTORCH", PathBuf::from(folder)),
            _ => return Ok(None),
        }
    };
    match Libtorch::at(&folder) {
        Ok(libtorch) => Ok(Some(Named { libtorch, named_by })),
        Err(flaw) => Err(flaw.of(named_by, &folder)),
    }
}

/// Whether the environment's LIBTORCH is the one .cargo/config.toml gives to every program that cargo starts, xtask
/// included, when the user set none.
pub fn libtorch_is_our_link(root: &Path) -> bool {
    env::var_os("LIBTORCH").is_some_and(|folder| is_our_link(&folder, root))
}

fn is_our_link(folder: &OsStr, root: &Path) -> bool {
    let (folder, link) = (Path::new(folder), Link::of(root));
    if folder == link.path() {
        return true;
    }
    // The same place by another path, for example through a linked home. The link itself must not be followed.
    let same_parent = || Some(folder.parent()?.canonicalize().ok()? == root.canonicalize().ok()?);
    folder.file_name() == link.path().file_name() && same_parent().unwrap_or(false)
}

fn pytorch() -> Result<PathBuf> {
    // As torch-sys chooses it.
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let output = Command::new(python).args(["-c", FIND_TORCH]).stdin(Stdio::null()).output();
    let output = output.map_err(|_| Error::NoPyTorch { python })?;
    if !output.status.success() {
        return Err(Error::NoPyTorch { python });
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_checkouts_own_link_counts_as_ours() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("checkout");
        let other = folder.path().join("other");
        std::fs::create_dir(&root)?;
        std::fs::create_dir(&other)?;
        let alias = folder.path().join("alias");
        std::os::unix::fs::symlink(&root, &alias)?;
        let ours = |path: PathBuf| is_our_link(path.as_os_str(), &root);
        assert!(ours(root.join(".libtorch")));
        assert!(ours(alias.join(".libtorch")));
        assert!(!ours(other.join(".libtorch")));
        assert!(!ours(root.join("libtorch")));
        assert!(!ours(PathBuf::new()));
        Ok(())
    }
}
