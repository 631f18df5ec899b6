//! Files that a model has unchanged from its base, given to it without copying their bytes.

use std::fs::File;
use std::path::{Path, PathBuf};

/// Makes the file `to` of the file `from` without copying: as a clone that shares its extents until one of them is written to (on
/// file systems that can: XFS, Btrfs and others); else, where `from` lies below `link_from`, as a second name of the same file.
/// Returns whether `to` is there now; where it is not, nothing is.
pub(crate) fn share(from: &Path, to: &Path, link_from: Option<&Path>) -> bool {
    clone(from, to) || link(from, to, link_from).is_some()
}

#[cfg(target_os = "linux")]
fn clone(from: &Path, to: &Path) -> bool {
    let Ok(source) = File::open(from) else {
        return false;
    };
    let Ok(target) = File::create_new(to) else {
        return false;
    };
    let cloned = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
    if !cloned {
        // Empty, and made a moment ago.
        let _ = std::fs::remove_file(to);
    }
    cloned
}

#[cfg(not(target_os = "linux"))]
fn clone(_from: &Path, _to: &Path) -> bool {
    false
}

fn link(from: &Path, to: &Path, link_from: Option<&Path>) -> Option<()> {
    // The Hub's cache names its files by symbolic links; what is to get a second name is the file.
    let from: PathBuf = from.canonicalize().ok()?;
    let below = link_from?.canonicalize().ok()?;
    if !from.starts_with(&below) {
        return None;
    }
    std::fs::hard_link(&from, to).ok()
}
