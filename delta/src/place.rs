//! Where a rebuilt model goes: what is there, its files in the making, and what becomes of both.

use std::fs::File;
use std::path::{Path, PathBuf};

use sparse_store::Staged;

use crate::DeltaError;
use crate::error::During;
use crate::identity::hash_file;
use crate::paths::{self, Occupant};
use crate::progress::Stop;
use crate::report::{FileReport, Status};
use crate::share::share;

/// Where files are written, and what people call the place.
pub(crate) struct Place<'p> {
    pub(crate) root: &'p Path,
    pub(crate) shown: &'p Path,
    pub(crate) as_file: bool,
    /// Below it, files of the base may get a second name.
    pub(crate) link_from: Option<&'p Path>,
}

impl Place<'_> {
    /// A file of the model to write to. None where there is nothing to write: no place, or one where the base's file of the same
    /// content could be shared.
    pub(crate) fn open(
        place: Option<&Self>,
        relative: &str,
        size: u64,
        same_as: Option<&Path>,
    ) -> Result<Option<(File, PathBuf)>, DeltaError> {
        match (place, same_as) {
            (None, _) => Ok(None),
            (Some(place), Some(from)) if place.share(relative, from)? => Ok(None),
            (Some(place), _) => place.create(relative, size).map(Some),
        }
    }

    fn share(&self, relative: &str, from: &Path) -> Result<bool, DeltaError> {
        if self.as_file {
            return Ok(false);
        }
        let (path, _) = self.path(relative)?;
        Ok(share(from, &path, self.link_from))
    }

    /// Where a file is written, its folder made, and the path people know.
    fn path(&self, relative: &str) -> Result<(PathBuf, PathBuf), DeltaError> {
        let path = sparse_store::safe_join(self.root, relative)?;
        let shown = self.shown.join(relative);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).during("create", shown.parent().unwrap_or(&shown))?;
        }
        Ok((path, shown))
    }

    pub(crate) fn create(&self, relative: &str, size: u64) -> Result<(File, PathBuf), DeltaError> {
        if self.as_file {
            let file = File::options()
                .write(true)
                .open(self.root)
                .during("open", self.shown)?;
            file.set_len(size).during("make room for", self.shown)?;
            return Ok((file, self.shown.to_path_buf()));
        }
        let (path, shown) = self.path(relative)?;
        let file = File::create_new(&path).during("create", &shown)?;
        file.set_len(size).during("make room for", &shown)?;
        Ok((file, shown))
    }
}

/// A full disk is better found out before the work than after it.
pub(crate) fn enough_space(staged: &Path, shown: &Path, needed: u64) -> Result<(), DeltaError> {
    // Where the file system does not say, the writes will.
    let Ok(stat) = rustix::fs::statvfs(staged) else {
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Compressing file systems may need less than the sizes say: only what is hopeless is refused here.
    if stat.f_blocks == 0 || free >= needed {
        return Ok(());
    }
    let message = format!("it needs {needed} bytes and {free} are free");
    Err(DeltaError::io(
        "write",
        shown,
        std::io::Error::new(std::io::ErrorKind::StorageFull, message),
    ))
}

/// What is at the output of a model that has these files; an error where it must stay.
pub(crate) fn look_at_model<'f>(
    files: impl Iterator<Item = &'f str>,
    output: &Path,
) -> Result<Occupant, DeltaError> {
    let occupant = paths::occupant(output)?;
    let refused = |why: String| {
        Err(DeltaError::Refused {
            path: output.into(),
            why,
        })
    };
    match occupant {
        Occupant::File => refused("it is a file, and the model is a folder".into()),
        Occupant::Dir => match paths::stranger(files, output)? {
            Some(stranger) => refused(format!(
                "it holds files that do not belong to the model ({stranger})"
            )),
            None => Ok(occupant),
        },
        _ => Ok(occupant),
    }
}

/// A model that is made and not visible yet, and what is at its output.
pub(crate) struct Settling<'s> {
    pub(crate) files: &'s [FileReport],
    pub(crate) output: &'s Path,
    pub(crate) occupant: &'s Occupant,
    /// Whether another model there may be replaced.
    pub(crate) replace: bool,
    /// What was made, for messages.
    pub(crate) what: String,
}

impl Settling<'_> {
    /// What becomes of the output, and what is still to be committed there.
    pub(crate) fn settle(
        self,
        staged: Option<Staged>,
        stop: &Stop,
    ) -> Result<(Status, Option<Staged>), DeltaError> {
        let Some(staged) = staged else {
            return Ok((Status::DryRun, None));
        };
        if *self.occupant != Occupant::Dir {
            return Ok((Status::Created, Some(staged)));
        }
        if same_files(self.files, self.output, stop)? {
            return Ok((Status::Exists, None));
        }
        if self.replace {
            return Ok((Status::Created, Some(staged)));
        }
        Err(DeltaError::Exists {
            path: self.output.into(),
            what: format!("it differs from {}", self.what),
        })
    }
}

/// Whether a folder holds files of these sizes and hashes.
fn same_files(files: &[FileReport], output: &Path, stop: &Stop) -> Result<bool, DeltaError> {
    for file in files {
        let path = sparse_store::safe_join(output, &file.file)?;
        let alike = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == file.bytes);
        if !alike || hash_file(&path, stop)? != file.sha256 {
            return Ok(false);
        }
    }
    Ok(true)
}
