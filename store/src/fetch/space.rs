//! Is there room? Better to say so before a download than after hours of it.

use std::path::Path;

use crate::error::{During, StoreError};

/// Fails if the file system of `folder` has less than `bytes` free.
pub(crate) fn ensure_room(folder: &Path, bytes: u64) -> Result<(), StoreError> {
    let stat = rustix::fs::statvfs(folder).during("read the free space of", folder)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < bytes {
        let problem = format!("{bytes} bytes are needed and {free} are free");
        let error = std::io::Error::new(std::io::ErrorKind::StorageFull, problem);
        return Err(StoreError::io("fetch into", folder, error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_refused_before_it_is_fetched() {
        let folder = std::env::temp_dir();
        assert!(ensure_room(&folder, 1).is_ok());
        let error = ensure_room(&folder, u64::MAX)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(
            error.contains("are free") && error.contains("free some space"),
            "{error}"
        );
    }
}
