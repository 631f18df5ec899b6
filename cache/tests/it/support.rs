//! A base, fine-tunes and their deltas.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sparse_cache::DeltaCache;
use sparse_delta::Compress;
use sparse_store::OpenOptions;

/// Elements of the one large tensor.
const ELEMENTS: usize = 96 * 1024;

/// A folder with a base, fine-tunes of it, and their deltas.
pub(crate) struct World {
    pub(crate) root: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl World {
    /// A base and `count` fine-tunes with their deltas.
    pub(crate) fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self {
            root: dir.path().to_path_buf(),
            _dir: Some(dir),
        };
        model(&world.root.join("base"), 0);
        for number in 1..=count {
            model(&world.finetune(number), number);
            let compress =
                Compress::new(world.base(), world.finetune(number).display().to_string())
                    .output(world.delta(number))
                    .open_options(world.options());
            runtime().block_on(compress.run()).unwrap();
        }
        world
    }

    /// One that another process made.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            _dir: None,
        }
    }

    pub(crate) fn base(&self) -> String {
        self.root.join("base").display().to_string()
    }

    pub(crate) fn finetune(&self, number: usize) -> PathBuf {
        self.root.join(format!("finetune-{number}"))
    }

    pub(crate) fn delta(&self, number: usize) -> String {
        self.root
            .join(format!("delta-{number}"))
            .display()
            .to_string()
    }

    pub(crate) fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::empty();
        options.cache_dir = Some(self.root.join("cache"));
        options.hub_cache = Some(self.root.join("hub"));
        options
    }

    /// Where the models of the cache are.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("cache/reconstructed")
    }

    /// A cache with room for `models` models.
    pub(crate) fn cache(&self, models: u64) -> DeltaCache {
        DeltaCache::new()
            .open_options(self.options())
            .max_cache_size_bytes(self.size() * models + 100)
            .threads(1)
            .open()
            .unwrap()
    }

    /// Bytes of one model.
    pub(crate) fn size(&self) -> u64 {
        files(&self.finetune(1))
            .values()
            .map(|bytes| bytes.len() as u64)
            .sum()
    }
}

fn model(path: &Path, number: usize) {
    std::fs::create_dir_all(path).unwrap();
    let bytes: Vec<u8> = (0..ELEMENTS)
        .flat_map(|at| {
            let base =
                0x3c00_u16 + u16::try_from(at.wrapping_mul(2_654_435_761) >> 7 & 0x3ff).unwrap();
            let step = u16::try_from(number * (at * 31 % 5)).unwrap();
            (base + step).to_le_bytes()
        })
        .collect();
    let view = TensorView::new(Dtype::BF16, vec![ELEMENTS / 96, 96], &bytes).unwrap();
    let file = safetensors::serialize([("w", view)], None).unwrap();
    std::fs::write(path.join("model.safetensors"), file).unwrap();
    std::fs::write(
        path.join("config.json"),
        format!("{{\"number\": {number}}}"),
    )
    .unwrap();
}

/// Every file below a folder, by relative path.
pub(crate) fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_path_buf();
                all.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    all
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
