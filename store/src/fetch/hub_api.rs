//! Requests to the Hub's API: with its token, within limits, asked again where that helps, and with errors that say what to do.

use std::time::Duration;

use futures::TryStreamExt as _;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::error::StoreError;
use crate::options::{OpenOptions, Secret};

const ENDPOINT: &str = "https://huggingface.co";
/// How often a request is made before giving up.
pub(crate) const ATTEMPTS: u32 = 4;
/// The longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may stay silent.
pub(crate) const STALL: Duration = Duration::from_secs(60);
/// The largest answer accepted.
const MAX_ANSWER: usize = 100_000_000;

/// The Hub's API.
pub(crate) struct Api<'a> {
    pub(crate) http: reqwest::Client,
    pub(crate) endpoint: String,
    pub(crate) token: Option<&'a Secret>,
    /// What is asked for, in messages.
    shown: String,
}

impl<'a> Api<'a> {
    pub(crate) fn new(options: &'a OpenOptions, shown: String) -> Result<Self, StoreError> {
        let endpoint = options
            .hub_endpoint
            .clone()
            .unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .user_agent(concat!("sparse/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(STALL)
            .build()
            .map_err(|error| bad_endpoint(&endpoint, error.to_string()))?;
        Ok(Self {
            http,
            endpoint,
            token: options.hub_token.as_ref(),
            shown,
        })
    }

    /// The address of a path of the API.
    pub(crate) fn url<'p>(
        &self,
        segments: impl IntoIterator<Item = &'p str>,
    ) -> Result<url::Url, StoreError> {
        let mut url =
            url::Url::parse(&self.endpoint).map_err(|error| self.malformed(error.to_string()))?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        Ok(url)
    }

    /// One answer: its headers and its body, of a bounded size.
    pub(crate) async fn get(&self, url: url::Url) -> Result<(HeaderMap, Vec<u8>), StoreError> {
        let mut request = self.http.get(url);
        if let Some(token) = self.token {
            request = request.bearer_auth(token.expose());
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let headers = response.headers().clone();
        if !status.is_success() {
            let retry_after = headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(self.refused(status.as_u16(), retry_after, None));
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream
            .try_next()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            if body.len() + bytes.len() > MAX_ANSWER {
                return Err(self.malformed(format!("the answer is larger than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&bytes);
        }
        Ok((headers, body))
    }

    /// Asks again when the network or the server fails for now; waits as long as the server asks.
    pub(crate) async fn retry<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let wait = match ask().await {
                Err(StoreError::RateLimited { retry_after, .. }) if tries < ATTEMPTS => retry_after
                    .map_or(Duration::from_secs(1) * tries, Duration::from_secs)
                    .min(MAX_WAIT),
                // A host that cannot be reached at all is not worth the wait.
                Err(error @ StoreError::Remote { .. }) if tries < 2 => {
                    tracing::debug!(%error, "asking again");
                    Duration::from_millis(300)
                }
                Err(error @ StoreError::Damaged { .. }) if tries < ATTEMPTS => {
                    tracing::debug!(%error, "asking again");
                    Duration::from_millis(300) * tries
                }
                other => return other,
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// A message without the token and without the signatures of redirected URLs.
    pub(crate) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if let Some(token) = self
            .token
            .map(Secret::expose)
            .filter(|token| !token.is_empty())
        {
            text = text.replace(token, "[redacted]");
        }
        let mut clean = String::with_capacity(text.len());
        let mut in_query = false;
        for c in text.chars() {
            if in_query && (c.is_whitespace() || matches!(c, ')' | '"' | '\'' | ',')) {
                in_query = false;
            }
            if !in_query {
                clean.push(c);
            }
            if c == '?' {
                in_query = true;
            }
        }
        clean
    }

    fn unreachable(&self, error: &reqwest::Error) -> StoreError {
        use std::error::Error as _;
        // The outer message only says "error sending request"; the inner ones say why.
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        self.remote(self.clean(&text), None)
    }

    pub(crate) fn remote(&self, problem: String, path: Option<&str>) -> StoreError {
        StoreError::Remote {
            reference: self.name(path),
            problem: format!(
                "the Hub at {} failed: {problem}",
                crate::location::redact(&self.endpoint)
            ),
            remedy:
                "check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use the cache only"
                    .to_owned(),
        }
    }

    pub(crate) fn malformed(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            reference: self.shown.clone(),
            problem,
        }
    }

    /// What is asked for, or a file of it.
    pub(crate) fn name(&self, path: Option<&str>) -> String {
        match path {
            Some(path) => format!("{path} of {}", self.shown),
            None => self.shown.clone(),
        }
    }

    pub(crate) fn refused(
        &self,
        status: u16,
        retry_after: Option<u64>,
        path: Option<&str>,
    ) -> StoreError {
        let reference = self.name(path);
        match status {
            401 | 403 => StoreError::Access {
                reference,
                problem: format!("HTTP {status}"),
                remedy: if self.token.is_some() {
                    "check that the token may read it, accept the model's terms on its page, and check the name".to_owned()
                } else {
                    "set HF_TOKEN if it is private or gated, and check the name: the Hub answers so for missing ones too".to_owned()
                },
            },
            404 => StoreError::NotFound {
                what: format!("{reference} on the Hub"),
                remedy: "check the name and the revision; a local path that looks like one is written ./org/name".to_owned(),
            },
            429 => StoreError::RateLimited { reference, retry_after },
            _ => self.remote(format!("HTTP {status}"), path),
        }
    }
}

/// An error about the Hub's address.
pub(crate) fn bad_endpoint(endpoint: &str, problem: String) -> StoreError {
    StoreError::Reference {
        reference: crate::location::redact(endpoint),
        problem,
        remedy: "set HF_ENDPOINT to the Hub's address, as in https://huggingface.co".to_owned(),
    }
}
