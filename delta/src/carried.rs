//! Files that are not weights: a reference where the base has the same bytes, compressed otherwise.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sparse_store::Model;
use sparse_store::hash::Sha256;

use crate::DeltaError;
use crate::blobs::{self, MAX_PREFIX};
use crate::error::During;
use crate::identity::{BaseFiles, hash_file};
use crate::manifest::CarriedEntry;
use crate::payload::{PayloadReader, PayloadWriter};
use crate::place::Place;
use crate::progress::{Stop, Ticker};

/// Files up to this size are compressed in one go, with the base's file of the same path as prefix.
const SMALL: u64 = 16 << 20;

/// Stores the carried files of a fine-tune.
pub(crate) fn store(
    base: &Model,
    finetune: &Model,
    writer: &mut PayloadWriter,
    stop: &Stop,
) -> Result<Vec<CarriedEntry>, DeltaError> {
    let mut base_files = BaseFiles::new(base);
    let mut entries = Vec::new();
    for file in finetune.carried() {
        stop.check()?;
        let mut entry = CarriedEntry {
            path: file.name.clone(),
            size: file.size,
            sha256: String::new(),
            same_as: None,
            prefix: None,
            blob: None,
        };
        if file.size > SMALL {
            entry.sha256 = hash_file(file.path(), stop)?;
            match base_files.same(&file.name, file.size, &entry.sha256, stop)? {
                Some(same) => entry.same_as = Some(same.name.clone()),
                None => {
                    let mut sha = Sha256::new();
                    let blob = blobs::store_file(writer, file.path(), |piece| {
                        stop.check()?;
                        sha.update(piece);
                        Ok(())
                    })?;
                    if blob.raw != file.size || sha.finish_hex() != entry.sha256 {
                        return Err(changed_meanwhile(file.path()));
                    }
                    entry.blob = Some(blob);
                }
            }
        } else {
            let content = std::fs::read(file.path()).during("read", file.path())?;
            if content.len() as u64 != file.size {
                return Err(changed_meanwhile(file.path()));
            }
            entry.sha256 = sparse_store::hash::sha256_hex(&content);
            if !content.is_empty() {
                match base_files.same(&file.name, file.size, &entry.sha256, stop)? {
                    Some(same) => entry.same_as = Some(same.name.clone()),
                    None => store_small(&mut entry, &content, &base_files, writer)?,
                }
            }
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn store_small(
    entry: &mut CarriedEntry,
    content: &[u8],
    base: &BaseFiles<'_>,
    writer: &mut PayloadWriter,
) -> Result<(), DeltaError> {
    let mut packed = blobs::pack(content, &[])?;
    if let Some(file) = base
        .named(&entry.path)
        .filter(|file| file.size > 0 && file.size <= MAX_PREFIX)
    {
        let prefix = std::fs::read(file.path()).during("read", file.path())?;
        let with_prefix = blobs::pack(content, &prefix)?;
        // A reference to the base costs some bytes of manifest.
        if with_prefix.len() + 32 + entry.path.len() < packed.len() {
            packed = with_prefix;
            entry.prefix = Some(file.name.clone());
        }
    }
    let (payload, offset) = writer.append(&packed)?;
    entry.blob = Some(crate::manifest::Blob {
        payload,
        offset,
        size: packed.len() as u64,
        raw: content.len() as u64,
    });
    Ok(())
}

fn changed_meanwhile(path: &Path) -> DeltaError {
    DeltaError::io(
        "read",
        path,
        std::io::Error::other(
            "it changed while it was read; wait until it is complete, then run again",
        ),
    )
}

/// The artifact that carried files come from.
#[derive(Clone, Copy)]
pub(crate) struct Carrier<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) payload: &'a PayloadReader,
    /// The base as the artifact names it.
    pub(crate) base_id: &'a str,
}

/// Makes a carried file at `place`, or nowhere: its content is checked against its SHA-256 as it goes.
pub(crate) fn restore(
    artifact: Carrier<'_>,
    base: &Model,
    entry: &CarriedEntry,
    place: Option<&Place<'_>>,
    stop: &Stop,
    ticker: &Ticker,
) -> Result<(), DeltaError> {
    let same = match &entry.same_as {
        Some(name) => Some((name, base_file(artifact, base, name, &entry.path)?)),
        None => None,
    };
    let same_as = same.as_ref().map(|(_, path)| path.as_path());
    let target = Place::open(place, &entry.path, 0, same_as)?;
    let mut sha = Sha256::new();
    let mut at = 0_u64;
    let mut each = |piece: &[u8]| {
        stop.check()?;
        sha.update(piece);
        if let Some((file, shown)) = &target {
            file.write_all_at(piece, at).during("write", shown)?;
        }
        at += piece.len() as u64;
        ticker.add(piece.len() as u64);
        Ok(())
    };
    if let Some((name, path)) = same {
        read_file(&path, &mut each)?;
        if at != entry.size || sha.finish_hex() != entry.sha256 {
            let what = format!(
                "the file {:?} the delta was made with: {} differs from it",
                name,
                path.display()
            );
            return Err(DeltaError::NotFound {
                what,
                remedy: "give the complete base model, its other files unchanged".into(),
            });
        }
        return Ok(());
    }
    let mut prefix = Vec::new();
    if let Some(name) = &entry.prefix {
        let path = base_file(artifact, base, name, &entry.path)?;
        let size = std::fs::metadata(&path)
            .during("read the size of", &path)?
            .len();
        if size > MAX_PREFIX {
            return Err(DeltaError::corrupt(
                artifact.dir.join(crate::manifest::MANIFEST),
                format!("the prefix of {:?} is too large", entry.path),
            ));
        }
        prefix = std::fs::read(&path).during("read", &path)?;
    }
    if let Some(blob) = &entry.blob {
        blobs::unpack_to(artifact.payload, blob, &prefix, &mut each)?;
    }
    if at != entry.size || sha.finish_hex() != entry.sha256 {
        let problem = if entry.prefix.is_some() {
            format!(
                "file {:?} does not match its SHA-256 (or the base's file of that name was changed)",
                entry.path
            )
        } else {
            format!("file {:?} does not match its SHA-256", entry.path)
        };
        return Err(DeltaError::corrupt(
            artifact
                .payload
                .path(entry.blob.unwrap_or_default().payload),
            problem,
        ));
    }
    Ok(())
}

fn base_file(
    artifact: Carrier<'_>,
    base: &Model,
    name: &str,
    wanted_for: &str,
) -> Result<std::path::PathBuf, DeltaError> {
    match base.carried().iter().find(|file| file.name == name) {
        Some(file) => Ok(file.path().to_path_buf()),
        None => Err(DeltaError::NotFound {
            what: format!(
                "the file {name:?} of the base model ({}), which the delta needs for {wanted_for:?},",
                base.id()
            ),
            remedy: format!(
                "give the complete folder of the base model ({}), not its weights alone",
                artifact.base_id
            ),
        }),
    }
}

fn read_file(
    path: &Path,
    each: &mut impl FnMut(&[u8]) -> Result<(), DeltaError>,
) -> Result<(), DeltaError> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path).during("open", path)?;
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&buffer[..count])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DeltaError::io("read", path, error)),
        }
    }
}
