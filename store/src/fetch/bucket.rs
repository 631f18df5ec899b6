//! A place in an object store or on an HTTP server, and what is there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetResult, ObjectMeta, ObjectStore,
    ObjectStoreScheme, RetryConfig,
};
use url::Url;

use crate::error::StoreError;
use crate::location::redact_url;
use crate::options::OpenOptions;

/// The most objects a model or artifact may have.
const MAX_OBJECTS: usize = 100_000;
/// How long a connection may stay silent before it counts as lost.
const STALL: Duration = Duration::from_secs(60);
/// The largest object read into memory whole (manifests and indexes).
const MAX_SMALL: u64 = 100_000_000;

/// A prefix or object, and the store that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: Path,
    /// The URL as it may be shown and cached by.
    pub(crate) shown: String,
    /// `user:password@` of the URL, which no message may repeat.
    secret: Option<String>,
    /// HTTP servers have no listing.
    pub(crate) lists: bool,
}

/// An object, by its path from the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) relative: String,
    pub(crate) location: Path,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    /// What changes when the object does: its ETag, or its time of change; none if the server tells neither.
    pub(crate) stamp: Option<String>,
}

impl Bucket {
    /// The place that `url` names. Nothing is sent yet.
    pub(crate) fn open(url: &Url, options: &OpenOptions) -> Result<Self, StoreError> {
        let shown = redact_url(url);
        let bad = |problem: String| StoreError::Reference {
            reference: shown.clone(),
            problem,
            remedy: "check the URL, and the AWS_*, GOOGLE_* or AZURE_* variables".to_owned(),
        };
        let (scheme, prefix) =
            ObjectStoreScheme::parse(url).map_err(|error| bad(error.to_string()))?;
        let settings = || {
            options
                .store_options
                .iter()
                .map(|(name, value)| (name.as_str(), value.expose()))
        };
        // Silence is timed per piece, below: a limit for a whole request would cut large objects on slow lines.
        let client = || {
            ClientOptions::new()
                .with_timeout_disabled()
                .with_connect_timeout(Duration::from_secs(10))
                .with_allow_http(url.scheme() == "http")
        };
        let retry = || RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                base: 2.,
            },
            max_retries: 4,
            retry_timeout: Duration::from_secs(30),
        };
        macro_rules! build {
            ($builder:ty) => {
                settings()
                    .fold(
                        <$builder>::new()
                            .with_url(url.as_str())
                            .with_client_options(client())
                            .with_retry(retry()),
                        |builder, (name, value)| match name.parse() {
                            Ok(key) => builder.with_config(key, value),
                            Err(_) => builder,
                        },
                    )
                    .build()
                    .map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            };
        }
        let store = match scheme {
            ObjectStoreScheme::Local => {
                Ok(Arc::new(LocalFileSystem::new()) as Arc<dyn ObjectStore>)
            }
            ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
            ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder),
            ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
            ObjectStoreScheme::Http => HttpBuilder::new()
                .with_url(&url[..url::Position::BeforePath])
                .with_client_options(client())
                .with_retry(retry())
                .build()
                .map(|store| Arc::new(store) as Arc<dyn ObjectStore>),
            _ => {
                return Err(bad(format!(
                    "the scheme {:?} is not supported",
                    url.scheme()
                )));
            }
        };
        let store = store.map_err(|error| bad(error.to_string()))?;
        let secret = url
            .password()
            .map(|password| format!("{}:{password}@", url.username()));
        Ok(Self {
            store,
            prefix,
            shown,
            secret,
            lists: scheme != ObjectStoreScheme::Http,
        })
    }

    /// A bucket of a store made elsewhere.
    #[cfg(test)]
    pub(crate) fn of(store: Arc<dyn ObjectStore>, prefix: &str, shown: &str) -> Self {
        Self {
            store,
            prefix: Path::from(prefix),
            shown: shown.to_owned(),
            secret: None,
            lists: true,
        }
    }

    /// Everything below the prefix, sorted.
    pub(crate) async fn list(&self) -> Result<Vec<Object>, StoreError> {
        let mut objects = Vec::new();
        let mut stream = self.store.list(Some(&self.prefix));
        while let Some(next) = self.stall(stream.next()).await? {
            let meta = next.map_err(|error| self.error(None, error))?;
            let Some(parts) = meta.location.prefix_match(&self.prefix) else {
                continue;
            };
            let relative = parts
                .map(|part| part.as_ref().to_owned())
                .collect::<Vec<_>>()
                .join("/");
            // Folder markers of some tools: empty objects with the folder's own name.
            if relative.is_empty() {
                continue;
            }
            crate::path::check_relative(&relative)?;
            if objects.len() == MAX_OBJECTS {
                return Err(StoreError::NotAModel {
                    path: self.shown.clone(),
                    problem: format!("more than {MAX_OBJECTS} objects are below it"),
                    remedy: "give the model's own prefix".to_owned(),
                });
            }
            objects.push(Object::new(relative, meta));
        }
        objects.sort_by(|a, b| a.relative.cmp(&b.relative));
        Ok(objects)
    }

    /// The object at the prefix itself, named by its last component.
    pub(crate) async fn this(&self) -> Result<Option<Object>, StoreError> {
        let Some(name) = self.prefix.filename().map(str::to_owned) else {
            return Ok(None);
        };
        self.head(name, &self.prefix).await
    }

    /// The object of that path below the prefix.
    pub(crate) async fn below(&self, relative: &str) -> Result<Option<Object>, StoreError> {
        crate::path::check_relative(relative)?;
        let location = self.location(relative);
        self.head(relative.to_owned(), &location).await
    }

    /// Where a path below the prefix is.
    pub(crate) fn location(&self, relative: &str) -> Path {
        Path::from_iter(
            self.prefix
                .parts()
                .chain(relative.split('/').map(object_store::path::PathPart::from)),
        )
    }

    async fn head(&self, relative: String, location: &Path) -> Result<Option<Object>, StoreError> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.stall(self.store.get_opts(location, options)).await? {
            Ok(result) => Ok(Some(Object::new(relative, result.meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(Some(location), error)),
        }
    }

    /// A small object, whole.
    pub(crate) async fn read_small(&self, object: &Object) -> Result<Bytes, StoreError> {
        if object.size > MAX_SMALL {
            return Err(StoreError::Damaged {
                reference: self.name(Some(&object.location)),
                problem: format!(
                    "it is {} bytes long and at most {MAX_SMALL} were expected",
                    object.size
                ),
            });
        }
        let got = self.get(object, None).await?;
        let bytes = self
            .stall(got.bytes())
            .await?
            .map_err(|error| self.error(Some(&object.location), error))?;
        if bytes.len() as u64 != object.size {
            return Err(StoreError::Damaged {
                reference: self.name(Some(&object.location)),
                problem: format!("{} of {} bytes arrived", bytes.len(), object.size),
            });
        }
        Ok(bytes)
    }

    /// Begins to read an object, or a range of it, as long as it is still the one that was listed.
    pub(crate) async fn get(
        &self,
        object: &Object,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<GetResult, StoreError> {
        self.try_get(object, range)
            .await?
            .map_err(|error| self.error(Some(&object.location), error))
    }

    /// As [`Self::get`], with the store's own error.
    pub(crate) async fn try_get(
        &self,
        object: &Object,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<object_store::Result<GetResult>, StoreError> {
        let options = GetOptions {
            range: range.map(Into::into),
            if_match: object.etag.clone(),
            ..GetOptions::default()
        };
        self.stall(self.store.get_opts(&object.location, options))
            .await
    }

    /// Waits, but not for ever.
    pub(crate) async fn stall<F: Future>(&self, future: F) -> Result<F::Output, StoreError> {
        tokio::time::timeout(STALL, future)
            .await
            .map_err(|_| StoreError::Remote {
                reference: self.shown.clone(),
                problem: format!("the server was silent for {} s", STALL.as_secs()),
                remedy: "check the network and run again".to_owned(),
            })
    }

    /// The URL of an object, as it may be shown.
    pub(crate) fn name(&self, location: Option<&Path>) -> String {
        match location.and_then(|location| location.prefix_match(&self.prefix)) {
            Some(parts) => {
                let below = parts
                    .map(|part| part.as_ref().to_owned())
                    .collect::<Vec<_>>()
                    .join("/");
                if below.is_empty() {
                    self.shown.clone()
                } else {
                    format!("{}/{below}", self.shown.trim_end_matches('/'))
                }
            }
            None => self.shown.clone(),
        }
    }

    /// The store's error as ours.
    pub(crate) fn error(&self, location: Option<&Path>, error: object_store::Error) -> StoreError {
        use object_store::Error as E;
        let reference = self.name(location);
        let mut problem = error.to_string();
        if let Some(secret) = &self.secret {
            problem = problem.replace(secret, "");
        }
        let message = problem.to_ascii_lowercase();
        match error {
            E::NotFound { .. } => StoreError::NotFound {
                what: reference,
                remedy: "check the URL and the bucket's region".to_owned(),
            },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => access(reference, problem),
            E::Precondition { .. } | E::NotModified { .. } => StoreError::Damaged {
                reference,
                problem: "it was changed while it was read".to_owned(),
            },
            // Without credentials, S3 asks the cloud machine's own service, which is not there.
            _ if message.contains("169.254") || message.contains("credential") => {
                access(reference, problem)
            }
            _ if message.contains("401 unauthorized") || message.contains("403 forbidden") => {
                access(reference, problem)
            }
            _ if message.contains("429 too many") => StoreError::RateLimited {
                reference,
                retry_after: None,
            },
            _ => StoreError::Remote {
                reference,
                problem,
                remedy: "check the network and the address, then run again".to_owned(),
            },
        }
    }
}

fn access(reference: String, problem: String) -> StoreError {
    StoreError::Access {
        reference,
        problem,
        remedy: "set the store's credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, \
                 AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY), or AWS_SKIP_SIGNATURE=true for a public bucket"
            .to_owned(),
    }
}

impl Object {
    fn new(relative: String, meta: ObjectMeta) -> Self {
        let changed = meta.last_modified.timestamp_millis();
        let stamp = match &meta.e_tag {
            Some(etag) => Some(format!("etag {etag}")),
            None if changed > 0 => Some(format!("changed {changed}")),
            None => None,
        };
        // Weak tags never match in a condition.
        let etag = meta.e_tag.filter(|etag| !etag.starts_with("W/"));
        Self {
            relative,
            location: meta.location,
            size: meta.size,
            etag,
            stamp,
        }
    }
}
