//! The link `.libtorch`, which .cargo/config.toml tells torch-sys about.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;

use crate::error::{Error, Result};
use crate::process::{cargo, run};
use crate::workspace::Workspace;

use super::libtorch::Libtorch;

pub struct Link {
    path: PathBuf,
}

impl Link {
    pub fn of(root: &Path) -> Self {
        Self { path: root.join(".libtorch") }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it leads to, if that is good.
    pub fn libtorch(&self) -> Option<Libtorch> {
        Libtorch::at(&self.path).ok()?;
        // By its real name, for messages.
        Libtorch::at(&self.path.canonicalize().ok()?).ok()
    }

    /// Replaces it in one step: a build that runs meanwhile sees the old one or the new one.
    pub fn point_at(&self, folder: &Path, workspace: &Workspace) -> Result<()> {
        let existed = match fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_symlink() => true,
            Ok(_) => return Err(Error::LinkTaken { path: self.path.clone() }),
            Err(_) => false,
        };
        let before = self.libtorch().map(|libtorch| libtorch.flavour());
        let folder = std::path::absolute(folder).map_err(Error::io("find", folder))?;
        let unchanged = fs::read_link(&self.path).is_ok_and(|target| target == folder);
        if unchanged {
            return Ok(());
        }
        let aside = self.path.with_extension(format!("new-{}", process::id()));
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &aside)(error)),
            _ => symlink(&folder, &aside).map_err(Error::io("create", &aside))?,
        }
        fs::rename(&aside, &self.path).map_err(Error::io("replace", &self.path))?;

        // torch-sys builds again when the value of LIBTORCH changes, not when the link leads elsewhere. The same flavour
        // of the same version elsewhere is the same to it.
        let after = Libtorch::at(&self.path).ok().map(|libtorch| libtorch.flavour());
        if existed && before != after {
            println!("libtorch changed, so torch-sys will be compiled again (a few minutes per profile)");
            run(cargo(workspace).args(["clean", "--quiet", "--package", "torch-sys"]))?;
            run(cargo(workspace).args(["clean", "--quiet", "--package", "torch-sys", "--release"]))?;
        }
        Ok(())
    }
}
