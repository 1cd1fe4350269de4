//! From wheels to a libtorch.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::error::{Error, Result};
use crate::interrupt;

use super::progress::Progress;
use super::wheels::{Flavour, VERSION};

/// Unpacks what `flavour` wants of the wheels into `tree`, in their own layout.
pub fn unpack(flavour: Flavour, wheels: &[PathBuf], tree: &Path) -> Result<()> {
    let mut archives = Vec::new();
    let mut total = 0;
    for wheel in wheels {
        let mut archive = open(wheel)?;
        let files = wanted(flavour, &mut archive).map_err(|error| spoiled(wheel, &error))?;
        total += files.iter().map(|file| file.bytes).sum::<u64>();
        archives.push((wheel, archive, files));
    }
    let mut progress = Progress::new("unpacking", total);
    let mut done = 0;
    for (wheel, mut archive, files) in archives {
        for file in files {
            let target = tree.join(&file.path);
            let parent = target.parent().unwrap_or(tree);
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            let mut entry = archive.by_index(file.index).map_err(|error| spoiled(wheel, &error))?;
            let mut copy = File::create(&target).map_err(Error::io("create", &target))?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                interrupt::check()?;
                // The last read compares the checksum.
                let read = entry.read(&mut buffer).map_err(|error| spoiled(wheel, &error))?;
                if read == 0 {
                    break;
                }
                copy.write_all(&buffer[..read]).map_err(Error::io("write", &target))?;
                done += read as u64;
                progress.reach(done);
            }
        }
    }
    progress.finish(true);
    complete(flavour, &tree.join("torch"))
}

/// What a wheel lacks beside a libtorch of pytorch.org's.
fn complete(flavour: Flavour, torch: &Path) -> Result<()> {
    let mut files = vec![("build-version", VERSION)];
    if flavour == Flavour::Cpu {
        // The wheel's own libtorch.so needs libtorch_cuda.so; torch-sys links with -ltorch and needs none of its content.
        files.push(("lib/libtorch.so", "INPUT(-ltorch_cpu -lc10)"));
    }
    for (name, content) in files {
        let file = torch.join(name);
        fs::write(&file, format!("{content}\n")).map_err(Error::io("write", &file))?;
    }
    Ok(())
}

struct Wanted {
    index: usize,
    path: PathBuf,
    bytes: u64,
}

fn open(wheel: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(wheel).map_err(Error::io("open", wheel))?;
    ZipArchive::new(BufReader::new(file)).map_err(|error| spoiled(wheel, &error))
}

fn wanted(flavour: Flavour, archive: &mut ZipArchive<BufReader<File>>) -> std::result::Result<Vec<Wanted>, ZipError> {
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        // Nothing that would land outside the tree.
        let Some(path) = entry.enclosed_name() else { continue };
        if entry.is_file() && flavour.wants(&path) {
            files.push(Wanted { index, path, bytes: entry.size() });
        }
    }
    Ok(files)
}

fn spoiled(wheel: &Path, error: &dyn std::error::Error) -> Error {
    Error::Wheel { wheel: wheel.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn wheel(path: &Path, files: &[(&str, &str)]) -> io::Result<()> {
        let mut zip = ZipWriter::new(File::create(path)?);
        for (name, content) in files {
            zip.start_file(*name, SimpleFileOptions::default())?;
            zip.write_all(content.as_bytes())?;
        }
        zip.finish()?;
        Ok(())
    }

    #[test]
    fn the_tree_has_what_is_wanted_and_nothing_else() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (path, tree) = (folder.path().join("torch.whl"), folder.path().join("tree"));
        let files = [("torch/lib/libc10.so", "c10"), ("torch/include/a/b.h", "b"), ("torch/__init__.py", "python")];
        wheel(&path, &files)?;
        unpack(Flavour::Cpu, &[path], &tree).map_err(io::Error::other)?;
        assert_eq!(fs::read_to_string(tree.join("torch/lib/libc10.so"))?, "c10");
        assert_eq!(fs::read_to_string(tree.join("torch/include/a/b.h"))?, "b");
        assert_eq!(fs::read_to_string(tree.join("torch/build-version"))?, "2.13.0\n");
        assert_eq!(fs::read_to_string(tree.join("torch/lib/libtorch.so"))?, "INPUT(-ltorch_cpu -lc10)\n");
        assert!(!tree.join("torch/__init__.py").exists());
        Ok(())
    }

    #[test]
    fn a_wheel_cut_short_is_refused() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("torch.whl");
        wheel(&path, &[("torch/lib/libc10.so", "c10")])?;
        let whole = fs::read(&path)?;
        fs::write(&path, &whole[..whole.len() / 2])?;
        let refused = unpack(Flavour::Cpu, &[path], &folder.path().join("tree"));
        assert!(matches!(refused, Err(Error::Wheel { .. })));
        Ok(())
    }
}
