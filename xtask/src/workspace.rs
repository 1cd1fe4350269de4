//! This checkout: where it is, and what cargo says is in it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::process;

/// Features that are no part of a normal build: `doc-only` leaves libtorch out, so nothing links with it.
const NOT_BUILT: [&str; 2] = ["default", "doc-only"];

pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout this xtask belongs to.
    pub fn current() -> Self {
        // Cargo's variable at run time, so that a moved or copied checkout means itself.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let manifest = PathBuf::from(manifest);
        Self { root: manifest.parent().map_or_else(|| manifest.clone(), Path::to_owned) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `cargo metadata` says about the library.
    pub fn library(&self) -> Result<Library> {
        let mut command: Command = process::cargo(self);
        let json = process::output(command.args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| unexpected(e.to_string()))?;
        let manifest = self.root.join("Cargo.toml");
        let package = metadata.packages.into_iter().find(|package| package.manifest_path == manifest);
        let package = package.ok_or_else(|| unexpected(format!("no package at {}", manifest.display())))?;
        Ok(Library { target_folder: metadata.target_directory, package })
    }
}

fn unexpected(reason: String) -> Error {
    Error::Answer { command: "`cargo metadata`", reason }
}

/// The library's package and where cargo builds it.
pub struct Library {
    pub target_folder: PathBuf,
    package: Package,
}

impl Library {
    /// The names of its examples, or of its benches.
    pub fn targets(&self, kind: &str) -> impl Iterator<Item = &str> {
        let of_kind = move |target: &&Target| target.kind.iter().any(|k| k == kind);
        self.package.targets.iter().filter(of_kind).map(|target| target.name.as_str())
    }

    /// Every feature that a normal build can have, separated by commas.
    pub fn features(&self) -> String {
        let names = self.package.features.keys().map(String::as_str);
        names.filter(|name| !NOT_BUILT.contains(name)).collect::<Vec<_>>().join(",")
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
    targets: Vec<Target>,
    features: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_and_features_come_from_the_metadata() -> std::result::Result<(), serde_json::Error> {
        let package = serde_json::from_str(
            r#"{"manifest_path": "/w/Cargo.toml", "features": {"doc-only": [], "default": [], "lm": [], "data": ["lm"]},
                "targets": [{"name": "prefopt", "kind": ["lib"]}, {"name": "length_bias", "kind": ["example"]}]}"#,
        )?;
        let library = Library { target_folder: "/w/target".into(), package };
        assert_eq!(library.targets("example").collect::<Vec<_>>(), ["length_bias"]);
        assert_eq!(library.targets("bench").count(), 0);
        assert_eq!(library.features(), "data,lm");
        Ok(())
    }
}
