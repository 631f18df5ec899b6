//! A model: safetensors files, mapped and checked, and the files that go with them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sparse_codec::{DType, TensorView};

use crate::error::{During, StoreError};
use crate::header::{Header, TensorEntry};
use crate::index::{INDEX_SUFFIX, MAX_INDEX, ShardIndex};
use crate::location::Location;
use crate::map::Map;
use crate::options::OpenOptions;
use crate::path::has_suffix;
use crate::scan::{Found, scan};

/// A safetensors file of a model.
#[derive(Debug)]
pub struct WeightFile {
    /// Path from the model's folder, components separated by `/`; the file's name for a single file.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    path: PathBuf,
    header: Header,
    map: Map,
    /// Whether its pages stay resident once they were read: it is of a small model.
    stays: bool,
}

/// Bytes of weights up to which a model's pages are never let go: two such models, a base and its fine-tune, are within what is
/// watched for, and to read a page again costs more than the room it takes.
const SMALL: u64 = 96 << 20;

impl WeightFile {
    fn open(name: String, path: PathBuf) -> Result<Self, StoreError> {
        let map = Map::open(&path)?;
        let size = map.bytes().len() as u64;
        let header = Header::parse(&path.display().to_string(), map.bytes(), size)?;
        Ok(Self {
            name,
            size,
            path,
            header,
            map,
            stays: false,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file, mapped.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// The header, checked against the file.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Everything before the first tensor, as it is in the file.
    #[must_use]
    pub fn header_bytes(&self) -> &[u8] {
        let end = usize::try_from(self.header.data_start).unwrap_or(usize::MAX);
        self.bytes().get(..end).unwrap_or(&[])
    }

    /// Lets go of the resident pages of a range of the file; they stay readable. Those of a small model (96 MiB) stay.
    pub fn release(&self, range: Range<u64>) {
        if !self.stays {
            self.map.release(range);
        }
    }

    /// Asks the system to read a range of the file ahead.
    pub fn prefetch(&self, range: Range<u64>) {
        self.map.prefetch(range);
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }
}

/// A file that goes with the weights: configuration, tokenizer, code, licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedFile {
    /// Path from the model's folder, components separated by `/`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    path: PathBuf,
}

impl CarriedFile {
    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn read(&self) -> Result<Vec<u8>, StoreError> {
        std::fs::read(&self.path).during("read", &self.path)
    }
}

/// A tensor of an open model.
#[derive(Clone, Copy, Debug)]
pub struct TensorHandle<'a> {
    /// The file it is in.
    pub file: &'a WeightFile,
    /// Its description.
    pub entry: &'a TensorEntry,
}

impl<'a> TensorHandle<'a> {
    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// The dtype; none if it is not known, and the tensor is bytes.
    #[must_use]
    pub fn dtype(&self) -> Option<DType> {
        DType::parse(&self.entry.dtype)
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &'a [u64] {
        &self.entry.shape
    }

    /// The bytes, mapped.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        // The header was checked against the file's size, so the range is always there.
        let bound = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        self.file
            .bytes()
            .get(bound(self.entry.range.start)..bound(self.entry.range.end))
            .unwrap_or(&[])
    }

    /// The tensor as the codec sees it.
    #[must_use]
    pub fn view(&self) -> TensorView<'a> {
        TensorView {
            dtype: self.dtype(),
            shape: self.shape(),
            data: self.data(),
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.entry.params()
    }

    /// Lets go of the tensor's resident pages; they stay readable.
    pub fn release(&self) {
        self.file.release(self.entry.range.clone());
    }
}

/// An open model.
#[derive(Debug)]
pub struct Model {
    id: String,
    root: PathBuf,
    single: bool,
    files: Vec<WeightFile>,
    carried: Vec<CarriedFile>,
    /// Name to (file, entry); where two files have a tensor of one name, the first file's.
    by_name: HashMap<String, (usize, usize)>,
    resolved: Option<String>,
}

impl Model {
    /// Opens a path, URL or Hub id. What is remote is fetched into a cache first, so that everything past here is a local
    /// map; what the cache has already is not fetched again.
    pub async fn open(reference: &str, options: &OpenOptions) -> Result<Self, StoreError> {
        let location = Location::parse(reference)?;
        let fetched = crate::fetch::model(&location, options).await?;
        let mut model = blocking("opening the model", move || match fetched.keep {
            Some(keep) => Self::open_folder(&fetched.path, keep),
            None => Self::open_local(&fetched.path),
        })
        .await??;
        model.id = crate::location::redact(reference);
        model.resolved = fetched.resolved;
        Ok(model)
    }

    /// Opens a safetensors file, a folder, a sharded checkpoint's folder, or its `*.safetensors.index.json`.
    ///
    /// In a folder, the weights are the safetensors files at its top and the shards that its indexes name; if there are
    /// none at its top, those further down (a pipeline of several models). Every other file is carried along.
    pub fn open_local(path: &Path) -> Result<Self, StoreError> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NotFound {
                    what: format!("the model {}", path.display()),
                    remedy: "check the path; a Hub model is written org/name[@revision]".to_owned(),
                });
            }
            Err(error) => return Err(StoreError::io("open", path, error)),
        };
        if meta.is_dir() {
            return Self::open_folder(path, |_| true);
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned)
            .unwrap_or_default();
        if has_suffix(&name, INDEX_SUFFIX) {
            let folder = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            let mut model = Self::open_folder(folder, |_| true)?;
            model.id = path.display().to_string();
            return Ok(model);
        }
        let files = vec![WeightFile::open(name, path.to_path_buf())?];
        Ok(Self::assemble(path, true, files, Vec::new()))
    }

    /// Opens the folder as if it held only the files that `keep` accepts.
    fn open_folder(root: &Path, keep: fn(&str) -> bool) -> Result<Self, StoreError> {
        let mut found = scan(root)?;
        found.retain(|found| keep(&found.relative));
        let indexes = read_indexes(root, &found)?;
        let shards: HashSet<&str> = indexes
            .iter()
            .flat_map(|(_, index)| index.shards())
            .collect();
        let named = |relative: &str| shards.contains(relative);
        let is_weights = |found: &Found| has_suffix(&found.relative, ".safetensors");
        let at_top = |found: &Found| !found.relative.contains('/');
        let any_at_top = found
            .iter()
            .any(|found| is_weights(found) && (at_top(found) || named(&found.relative)));
        let (weights, carried): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|found| {
            is_weights(found) && (!any_at_top || at_top(found) || named(&found.relative))
        });
        // An index without any of its shards is the better message, so it comes first.
        for (file, index) in &indexes {
            for shard in index.shards() {
                if !weights.iter().any(|found| found.relative == shard) {
                    return Err(StoreError::Index {
                        file: file.clone(),
                        problem: format!("shard {shard:?} is missing"),
                        remedy: "put the shard beside it, or download the checkpoint again"
                            .to_owned(),
                    });
                }
            }
        }
        if weights.is_empty() {
            return Err(not_a_model(root, &carried));
        }
        let files = weights
            .into_iter()
            .map(|found| WeightFile::open(found.relative, found.path))
            .collect::<Result<Vec<_>, _>>()?;
        let headers: HashMap<&str, &Header> = files
            .iter()
            .map(|file| (file.name.as_str(), &file.header))
            .collect();
        for (file, index) in &indexes {
            index.check(file, &headers)?;
        }
        let carried = carried
            .into_iter()
            .map(|found| {
                // Early, before hours of work: a file that cannot be read.
                std::fs::File::open(&found.path).during("read", &found.path)?;
                Ok(CarriedFile {
                    name: found.relative,
                    size: found.size,
                    path: found.path,
                })
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Self::assemble(root, false, files, carried))
    }

    fn assemble(
        root: &Path,
        single: bool,
        mut files: Vec<WeightFile>,
        carried: Vec<CarriedFile>,
    ) -> Self {
        let stays = files.iter().map(|file| file.size).sum::<u64>() <= SMALL;
        files.iter_mut().for_each(|file| file.stays = stays);
        let mut by_name = HashMap::new();
        for (file_index, file) in files.iter().enumerate() {
            for (entry_index, entry) in file.header.entries.iter().enumerate() {
                by_name
                    .entry(entry.name.clone())
                    .or_insert((file_index, entry_index));
            }
        }
        let id = root.display().to_string();
        Self {
            id,
            root: root.to_path_buf(),
            single,
            files,
            carried,
            by_name,
            resolved: None,
        }
    }

    /// The reference as given, secrets removed.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the model is on this machine: its folder, or its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// What the reference meant when it was opened: the Hub's commit.
    #[must_use]
    pub fn resolved(&self) -> Option<&str> {
        self.resolved.as_deref()
    }

    /// Whether the reference was one safetensors file rather than a folder.
    #[must_use]
    pub fn is_single_file(&self) -> bool {
        self.single
    }

    /// The weight files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The weight file of that name.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&WeightFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Every other file, sorted by path.
    #[must_use]
    pub fn carried(&self) -> &[CarriedFile] {
        &self.carried
    }

    /// The tensor of that name; where two files have one, the first file's.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorHandle<'_>> {
        let &(file, entry) = self.by_name.get(name)?;
        let file = self.files.get(file)?;
        Some(TensorHandle {
            file,
            entry: file.header.entries.get(entry)?,
        })
    }

    /// Every tensor: files in order, then the order of bytes.
    pub fn tensors(&self) -> impl Iterator<Item = TensorHandle<'_>> {
        self.files.iter().flat_map(|file| {
            file.header
                .entries
                .iter()
                .map(move |entry| TensorHandle { file, entry })
        })
    }

    /// The number of parameters of all tensors.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.tensors()
            .fold(0, |sum, tensor| sum.saturating_add(tensor.params()))
    }

    /// The size of all weight files.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

fn read_indexes(root: &Path, found: &[Found]) -> Result<Vec<(String, ShardIndex)>, StoreError> {
    let mut indexes = Vec::new();
    for found in found
        .iter()
        .filter(|found| has_suffix(&found.relative, INDEX_SUFFIX) && !found.relative.contains('/'))
    {
        let file = root.join(&found.relative).display().to_string();
        if found.size > MAX_INDEX {
            return Err(StoreError::Index {
                file,
                problem: format!(
                    "it is {} bytes long and the limit is {MAX_INDEX}",
                    found.size
                ),
                remedy: "download or export the checkpoint again".to_owned(),
            });
        }
        let json = std::fs::read(&found.path).during("read", &found.path)?;
        let index = ShardIndex::parse(&file, &json)?;
        indexes.push((file, index));
    }
    Ok(indexes)
}

fn not_a_model(root: &Path, found: &[Found]) -> StoreError {
    let other = [
        ".bin", ".pt", ".pth", ".h5", ".gguf", ".onnx", ".ckpt", ".msgpack",
    ];
    let weights: Vec<&str> = found
        .iter()
        .filter(|found| {
            other
                .iter()
                .any(|suffix| has_suffix(&found.relative, suffix))
        })
        .map(|found| found.relative.as_str())
        .take(3)
        .collect();
    let (problem, remedy) = if weights.is_empty() {
        (
            "no *.safetensors file is in it".to_owned(),
            "check the path",
        )
    } else {
        (
            format!(
                "no *.safetensors file is in it, only {}",
                weights.join(", ")
            ),
            "convert the weights to safetensors first",
        )
    };
    StoreError::NotAModel {
        path: root.display().to_string(),
        problem,
        remedy: remedy.to_owned(),
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Ok(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Stopped {
            what: what.to_owned(),
        }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::testing::{noise, write};

    fn files(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if name.ends_with(".safetensors") {
                write(&path, &[(name, "F32", &[2, 2], noise(1, 16))]).unwrap();
            } else {
                std::fs::write(path, *name).unwrap();
            }
        }
    }

    fn names(model: &Model) -> (Vec<&str>, Vec<&str>) {
        (
            model
                .files()
                .iter()
                .map(|file| file.name.as_str())
                .collect(),
            model
                .carried()
                .iter()
                .map(|file| file.name.as_str())
                .collect(),
        )
    }

    fn message(path: &Path) -> String {
        Model::open_local(path).unwrap_err().to_string()
    }

    #[test]
    fn a_single_file() {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path(), &["x.safetensors", "config.json"]);
        let model = Model::open_local(&dir.path().join("x.safetensors")).unwrap();
        assert!(model.is_single_file());
        assert_eq!(names(&model), (vec!["x.safetensors"], vec![]));
        let tensor = model.tensor("x.safetensors").unwrap();
        assert_eq!(
            (tensor.dtype(), tensor.shape(), tensor.params()),
            (Some(DType::F32), &[2_u64, 2][..], 4)
        );
        assert_eq!(tensor.data(), noise(1, 16));
        tensor.release();
        assert_eq!(tensor.view().data, noise(1, 16));
        assert!(model.tensor("y").is_none());
        let file = &model.files()[0];
        assert_eq!(file.header_bytes().len() as u64, file.header().data_start);
        assert_eq!(model.weight_bytes(), file.size);
    }

    #[test]
    fn a_folder_with_what_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        files(
            dir.path(),
            &[
                "b.safetensors",
                "a.safetensors",
                "config.json",
                "sub/x.safetensors",
                "code/m.py",
            ],
        );
        let model = Model::open_local(dir.path()).unwrap();
        let expected = (
            vec!["a.safetensors", "b.safetensors"],
            vec!["code/m.py", "config.json", "sub/x.safetensors"],
        );
        assert_eq!(names(&model), expected);
        assert!(!model.is_single_file());
        let order: Vec<_> = model
            .tensors()
            .map(|tensor| tensor.name().to_owned())
            .collect();
        assert_eq!(order, ["a.safetensors", "b.safetensors"]);
        assert_eq!(model.carried()[1].read().unwrap(), b"config.json");
    }

    #[test]
    fn a_pipeline_of_models_below() {
        let dir = tempfile::tempdir().unwrap();
        files(
            dir.path(),
            &[
                "unet/model.safetensors",
                "vae/model.safetensors",
                "model_index.json",
            ],
        );
        let model = Model::open_local(dir.path()).unwrap();
        assert_eq!(
            names(&model),
            (
                vec!["unet/model.safetensors", "vae/model.safetensors"],
                vec!["model_index.json"]
            )
        );
    }

    #[test]
    fn a_sharded_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        files(
            dir.path(),
            &["m-1.safetensors", "shards/m-2.safetensors", "config.json"],
        );
        let index = dir.path().join("model.safetensors.index.json");
        let json = |text: &str| std::fs::write(&index, text).unwrap();
        json(
            r#"{"weight_map":{"m-1.safetensors":"m-1.safetensors","shards/m-2.safetensors":"shards/m-2.safetensors"}}"#,
        );
        for path in [dir.path(), &index] {
            let model = Model::open_local(path).unwrap();
            let carried = vec!["config.json", "model.safetensors.index.json"];
            assert_eq!(
                names(&model),
                (vec!["m-1.safetensors", "shards/m-2.safetensors"], carried)
            );
            assert_eq!(model.id(), path.to_str().unwrap());
        }
        json(r#"{"weight_map":{"m-1.safetensors":"m-1.safetensors","x":"m-3.safetensors"}}"#);
        assert!(message(dir.path()).contains("\"m-3.safetensors\" is missing"));
        json(r#"{"weight_map":{"x":"m-1.safetensors"}}"#);
        assert!(message(dir.path()).contains("no shard holds it"));
        json(r#"{"weight_map":{"x":"../m-1.safetensors"}}"#);
        assert!(message(dir.path()).contains("could leave"));
    }

    #[test]
    fn what_is_no_model_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(message(&dir.path().join("missing")).contains("does not exist"));
        files(dir.path(), &["config.json"]);
        assert!(message(dir.path()).contains("no *.safetensors"));
        files(dir.path(), &["pytorch_model.bin"]);
        let error = message(dir.path());
        assert!(
            error.contains("pytorch_model.bin") && error.contains("convert"),
            "{error}"
        );
        std::fs::write(dir.path().join("x.safetensors"), b"").unwrap();
        assert!(message(dir.path()).contains("0 bytes"));
    }

    #[test]
    fn links_out_of_the_folder_and_unreadable_files() {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path(), &["x.safetensors"]);
        symlink("/etc/passwd", dir.path().join("config.json")).unwrap();
        assert!(message(dir.path()).contains("leads out"));
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        files(dir.path(), &["config.json"]);
        std::fs::set_permissions(
            dir.path().join("config.json"),
            std::fs::Permissions::from_mode(0o000),
        )
        .unwrap();
        if !rustix::process::geteuid().is_root() {
            assert!(message(dir.path()).contains("permissions"));
        }
    }
}
