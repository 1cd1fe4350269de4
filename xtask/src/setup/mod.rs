//! `cargo xtask setup`: the link `.libtorch` in the checkout, behind it a libtorch of the right version.

mod cache;
mod download;
mod libtorch;
mod link;
mod locate;
mod progress;
mod unpack;
mod wheels;

use std::fs;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::workspace::Workspace;

pub use self::cache::Cache;
use self::libtorch::Libtorch;
use self::link::Link;
pub use self::locate::libtorch_is_our_link;
pub use self::wheels::{Flavour, VERSION};

/// Makes libtorch available to plain cargo in this checkout. Without a wish, whatever works is kept.
pub fn setup(workspace: &Workspace, wish: Option<Flavour>) -> Result<()> {
    let link = Link::of(workspace.root());
    if let Some(named) = locate::named_by_user(workspace.root())? {
        if wish == Some(Flavour::Cuda) && named.libtorch.flavour() != Flavour::Cuda {
            return Err(Error::NotCuda { named_by: named.named_by, folder: named.libtorch.folder().to_owned() });
        }
        // For shells and editors in which the variable is not set.
        if link.libtorch().is_none() {
            link.point_at(named.libtorch.folder(), workspace)?;
        }
        println!("libtorch {VERSION} is ready: {} ({})", named.libtorch.folder().display(), named.named_by);
        return Ok(());
    }

    let libtorch = match link.libtorch() {
        Some(linked) if wish.is_none_or(|flavour| flavour == linked.flavour()) => linked,
        _ => {
            let provided = provide(wish.unwrap_or(Flavour::Cpu))?;
            link.point_at(provided.folder(), workspace)?;
            provided
        }
    };
    println!("libtorch {VERSION} ({}) is ready: {}", libtorch.flavour(), libtorch.folder().display());
    Ok(())
}

/// The user's libtorch of this flavour, downloaded if it is not in the cache yet.
fn provide(flavour: Flavour) -> Result<Libtorch> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return Err(Error::Platform);
    }
    interrupt::watch()?;
    let cache = Cache::open()?;
    let home = cache.folder().join(flavour.folder_name());
    if let Ok(present) = Libtorch::at(&home.join("torch")) {
        return Ok(present);
    }
    let _lock = cache.lock()?;
    // Another setup may have finished while this one waited.
    if let Ok(present) = Libtorch::at(&home.join("torch")) {
        return Ok(present);
    }
    cache.remove_leftovers()?;
    cache.require_room(flavour)?;
    let partial = cache.partial()?;
    let tree = partial.path().join("tree");
    let wheels = download::download(flavour, partial.path()).map_err(|error| cache.explain(error, flavour))?;
    unpack::unpack(flavour, &wheels, &tree).map_err(|error| cache.explain(error, flavour))?;
    if home.exists() {
        fs::remove_dir_all(&home).map_err(Error::io("remove the damaged", &home))?;
    }
    interrupt::check()?;
    fs::rename(&tree, &home).map_err(Error::io("create", &home))?;
    let folder = home.join("torch");
    Libtorch::at(&folder).map_err(|flaw| flaw.of("setup", &folder))
}
