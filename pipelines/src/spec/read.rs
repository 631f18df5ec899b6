//! From YAML to [`Pipeline`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::yaml::{self, Keys, Node, Value, closest};
use super::{
    Check, ForEach, Lineage, Misfire, Notification, Overlap, Parameter, Pipeline, Resources,
    Retries, Schedule, Severity, SpecError, StageSpec, When,
};
use crate::{ParamValue, Params};

/// The longest file that is read: far above any that people write.
const MAX_FILE: u64 = 8 << 20;

/// The names of a pipeline's file in its folder.
const FILES: [&str; 2] = ["pipeline.yaml", "pipeline.yml"];

/// The pipeline files that `path` means: a file, a folder with a `pipeline.yaml`, or a folder of such files and folders.
pub fn find_all(path: &Path) -> Result<Vec<PathBuf>, SpecError> {
    let missing = |problem: String, remedy: &str| SpecError::new(path, 0, "", problem, remedy);
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let own = |folder: &Path| {
        FILES
            .iter()
            .map(|name| folder.join(name))
            .find(|file| file.is_file())
    };
    if let Some(file) = own(path) {
        return Ok(vec![file]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| {
        missing(
            format!("it cannot be opened: {error}"),
            "give a YAML file, or a folder with a pipeline.yaml",
        )
    })?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let at = entry.path();
        let is_yaml = at
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if at.is_file() && is_yaml {
            found.push(at);
        } else if at.is_dir() {
            found.extend(own(&at));
        }
    }
    if found.is_empty() {
        return Err(missing(
            "no pipeline is there".to_owned(),
            "give a YAML file, or a folder with a pipeline.yaml",
        ));
    }
    found.sort();
    Ok(found)
}

fn read_text(file: &Path, of: &Path, line: u64, place: &str) -> Result<String, SpecError> {
    use std::io::Read as _;
    let wrong = |problem: String, remedy: &str| SpecError::new(of, line, place, problem, remedy);
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|error| {
            wrong(
                format!("{} cannot be read: {error}", file.display()),
                "check the path and its permissions",
            )
        })?;
    if text.len() as u64 > MAX_FILE {
        return Err(wrong(
            format!("{} holds more than 8 MiB", file.display()),
            "a pipeline is a small text file",
        ));
    }
    Ok(text)
}

impl Pipeline {
    /// Reads a pipeline from its YAML file, or the folder that holds `pipeline.yaml`. `given` replaces its parameters.
    pub fn read(path: &Path, given: &Params) -> Result<Self, SpecError> {
        let mut files = find_all(path)?;
        if files.len() > 1 {
            return Err(SpecError::new(
                path,
                0,
                "",
                format!("it holds {} pipelines", files.len()),
                "give one of its files",
            ));
        }
        let file = files.pop().unwrap_or_else(|| path.to_owned());
        let text = read_text(&file, &file, 0, "")?;
        Self::parse(&file, &text, given)
    }

    /// Reads a pipeline from text; `file` is what errors name, and where its SQL files are sought.
    pub fn parse(file: &Path, text: &str, given: &Params) -> Result<Self, SpecError> {
        let mut keys = Keys::of(file, "", yaml::parse(file, text)?)?;
        let name = match keys.text("name")? {
            Some(name) => name,
            None => default_name(file),
        };
        if !is_name(&name) {
            return Err(keys.error(
                keys.line(),
                format!("name: {name:?} is no name"),
                "use letters, digits, '-', '_' and '.', such as nightly",
            ));
        }
        let description = keys.text("description")?.unwrap_or_default();
        let params = params(file, &mut keys, given)?;
        let resources = resources(file, keys.take("resources"))?;
        let schedule = keys
            .take("schedule")
            .map(|node| schedule(file, node))
            .transpose()?;
        let mut notify = Vec::new();
        for node in keys.nodes("notify") {
            notify.push(notification(file, node, &params)?);
        }
        let lineage = keys
            .take("lineage")
            .map(|node| lineage(file, node, &params))
            .transpose()?;
        let mut stages: Vec<StageSpec> = Vec::new();
        let stage_line = keys.line();
        for node in keys.nodes("stages") {
            let stage = stage(file, node, &resources)?;
            if let Some(other) = stages.iter().find(|other| other.name == stage.name) {
                return Err(SpecError::new(
                    file,
                    stage.line,
                    &format!("stage {:?}", stage.name),
                    format!("line {} has a stage of that name already", other.line),
                    "give each stage its own name",
                ));
            }
            stages.push(stage);
        }
        if stages.is_empty() {
            return Err(keys.error(
                stage_line,
                "it has no stages",
                "add `stages:` with `- name:` and `sql:`",
            ));
        }
        keys.end()?;
        Ok(Self {
            name,
            description,
            file: file.to_owned(),
            params,
            resources,
            schedule,
            notify,
            lineage,
            stages,
        })
    }
}

fn default_name(file: &Path) -> String {
    let stem = |path: &Path| {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    match stem(file) {
        Some(name) if name == "pipeline" => std::path::absolute(file)
            .ok()
            .and_then(|file| file.parent().and_then(stem))
            .unwrap_or(name),
        Some(name) => name,
        None => "pipeline".to_owned(),
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(allowed)
}

/// A stage's name is a table's name too.
fn is_stage_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.len() <= 100
        && name.chars().all(allowed)
}

fn params(
    file: &Path,
    keys: &mut Keys<'_>,
    given: &Params,
) -> Result<BTreeMap<String, Parameter>, SpecError> {
    let mut all = BTreeMap::new();
    if let Some(node) = keys.take("params") {
        let line = node.line;
        let Value::Map(map) = node.value else {
            return Err(keys.error(
                line,
                "params is no map",
                "write `params:` with `name: value` lines",
            ));
        };
        for (name, line, node) in map {
            let place = format!("parameter {name:?}");
            let value = match node.value {
                Value::Text(text) => ParamValue::Text(text),
                Value::Number(number) => ParamValue::Number(number.to_string()),
                Value::Bool(value) => ParamValue::Boolean(value),
                Value::Null => ParamValue::Null,
                Value::List(_) | Value::Map(_) => {
                    return Err(SpecError::new(
                        file,
                        line,
                        &place,
                        "it is no single value",
                        "write a text, a number, true, false or null",
                    ));
                }
            };
            let value = given.get(&name).cloned().unwrap_or(value);
            all.insert(name, secret(file, line, &place, value)?);
        }
    }
    if let Some(name) = given.names().find(|name| !all.contains_key(*name)) {
        let remedy = match closest(name, all.keys().map(String::as_str)) {
            Some(near) => format!("did you mean {near}?"),
            None => "add it to `params:` of the pipeline".to_owned(),
        };
        return Err(SpecError::new(
            file,
            0,
            "",
            format!("--param {name}: the pipeline has no such parameter"),
            remedy,
        ));
    }
    Ok(all)
}

/// `env:NAME` and `file:PATH` are where a secret is.
fn secret(file: &Path, line: u64, place: &str, value: ParamValue) -> Result<Parameter, SpecError> {
    let shown = match &value {
        ParamValue::Text(text) => text.clone(),
        ParamValue::Number(number) => number.clone(),
        ParamValue::Boolean(value) => value.to_string(),
        ParamValue::Null => "null".to_owned(),
    };
    let found = if let Some(name) = shown.strip_prefix("env:") {
        std::env::var(name).map_err(|_| {
            SpecError::new(
                file,
                line,
                place,
                format!("the environment variable {name} is not set"),
                format!("set it: export {name}=..."),
            )
        })?
    } else if let Some(path) = shown.strip_prefix("file:") {
        let text = read_text(Path::new(path), file, line, place)?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        return Ok(Parameter {
            shown,
            value,
            secret: false,
        });
    };
    Ok(Parameter {
        shown,
        value: ParamValue::Text(found),
        secret: true,
    })
}

/// A text that may be a secret.
fn maybe_secret(file: &Path, line: u64, place: &str, text: String) -> Result<String, SpecError> {
    let found = secret(file, line, place, ParamValue::Text(text))?;
    Ok(match found.value {
        ParamValue::Text(text) => text,
        _ => found.shown,
    })
}

fn resources(file: &Path, node: Option<Node>) -> Result<Resources, SpecError> {
    let mut resources = Resources {
        concurrency: 1,
        memory_mib: None,
        gpu: 0,
    };
    let Some(node) = node else {
        return Ok(resources);
    };
    let mut keys = Keys::of(file, "resources", node)?;
    if let Some(concurrency) = keys.count("concurrency")? {
        if concurrency == 0 {
            return Err(keys.error(keys.line(), "concurrency is 0", "write 1 or more"));
        }
        resources.concurrency = concurrency.min(1 << 16);
    }
    resources.memory_mib = keys.parsed("memory", "`memory: 16GiB`", mebibytes)?;
    resources.gpu = keys.count("gpu")?.unwrap_or(0).min(1 << 16);
    keys.end()?;
    Ok(resources)
}

fn schedule(file: &Path, node: Node) -> Result<Schedule, SpecError> {
    let mut keys = Keys::of(file, "schedule", node)?;
    let line = keys.line();
    let cron = keys.required("cron")?;
    if let Err(error) = cron.parse::<croner::Cron>() {
        return Err(keys.error(
            line,
            format!("cron: {cron:?} is not understood: {error}"),
            "write minute, hour, day, month and weekday, such as \"0 2 * * *\"",
        ));
    }
    let schedule = Schedule {
        cron,
        timezone: keys
            .parsed("timezone", "an IANA zone, such as Europe/Berlin", |text| {
                text.parse().ok()
            })?
            .unwrap_or(chrono_tz::UTC),
        misfire: keys
            .parsed("misfire", "skip, once or all", |text| match text {
                "skip" => Some(Misfire::Skip),
                "once" => Some(Misfire::Once),
                "all" => Some(Misfire::All),
                _ => None,
            })?
            .unwrap_or(Misfire::Once),
        catch_up: keys
            .parsed("catch_up", "a duration, such as 1d", duration)?
            .unwrap_or(Duration::from_secs(86_400)),
        overlap: keys
            .parsed("overlap", "forbid, queue or replace", |text| match text {
                "forbid" => Some(Overlap::Forbid),
                "queue" => Some(Overlap::Queue),
                "replace" => Some(Overlap::Replace),
                _ => None,
            })?
            .unwrap_or(Overlap::Forbid),
    };
    keys.end()?;
    Ok(schedule)
}

fn notification(
    file: &Path,
    node: Node,
    params: &BTreeMap<String, Parameter>,
) -> Result<Notification, SpecError> {
    let mut keys = Keys::of(file, "notify", node)?;
    let mut on = Vec::new();
    let given = keys.texts("on")?;
    for text in &given {
        on.push(match text.as_str() {
            "success" => When::Success,
            "failure" => When::Failure,
            "check" => When::Check,
            _ => {
                return Err(keys.error(
                    keys.line(),
                    format!("on: {text:?} is not understood"),
                    "write success, failure or check",
                ));
            }
        });
    }
    if on.is_empty() {
        on = vec![When::Failure, When::Check];
    }
    let line = keys.line();
    let webhook = keys
        .text("webhook")?
        .map(|url| endpoint(file, line, "notify", &url, params))
        .transpose()?;
    let command = keys.texts("command")?;
    if webhook.is_some() != command.is_empty() {
        return Err(keys.error(
            line,
            "it needs a webhook or a command, and one of them only",
            "write `webhook: https://...` or `command: [program, argument]`",
        ));
    }
    keys.end()?;
    Ok(Notification {
        on,
        webhook,
        command,
    })
}

fn lineage(
    file: &Path,
    node: Node,
    params: &BTreeMap<String, Parameter>,
) -> Result<Lineage, SpecError> {
    let mut keys = Keys::of(file, "lineage", node)?;
    let line = keys.line();
    let lineage = Lineage {
        url: keys
            .text("url")?
            .map(|url| endpoint(file, line, "lineage", &url, params))
            .transpose()?,
        file: keys.text("file")?.map(PathBuf::from),
        namespace: keys
            .text("namespace")?
            .unwrap_or_else(|| "sparse".to_owned()),
    };
    if lineage.url.is_none() && lineage.file.is_none() {
        return Err(keys.error(
            line,
            "it needs a url or a file",
            "write `url: http://...` or `file: lineage.jsonl`",
        ));
    }
    keys.end()?;
    Ok(lineage)
}

/// A URL: as written, `$name` of a parameter, `env:` or `file:`.
fn endpoint(
    file: &Path,
    line: u64,
    place: &str,
    text: &str,
    params: &BTreeMap<String, Parameter>,
) -> Result<String, SpecError> {
    let found = match text.strip_prefix('$') {
        Some(name) => match params.get(name).map(|param| &param.value) {
            Some(ParamValue::Text(text)) => text.clone(),
            _ => {
                return Err(SpecError::new(
                    file,
                    line,
                    place,
                    format!("there is no parameter {name} that holds text"),
                    "add it to `params:`",
                ));
            }
        },
        None => maybe_secret(file, line, place, text.to_owned())?,
    };
    match url::Url::parse(&found) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(found),
        _ => Err(SpecError::new(
            file,
            line,
            place,
            format!("{text:?} is no http(s) URL"),
            "write https://host/path",
        )),
    }
}

fn stage(file: &Path, node: Node, resources: &Resources) -> Result<StageSpec, SpecError> {
    let mut keys = Keys::of(file, "a stage", node)?;
    let line = keys.line();
    let name = keys.required("name")?;
    keys.within(format!("stage {name:?}"));
    if !is_stage_name(&name) {
        return Err(keys.error(
            line,
            "its name is no table name",
            "use small letters, digits and '_', such as find_base",
        ));
    }
    let sql_file = keys
        .text("file")?
        .map(|path| file.parent().unwrap_or(Path::new(".")).join(path));
    let sql = match (keys.text("sql")?, &sql_file) {
        (Some(sql), None) => sql,
        (None, Some(sql_file)) => read_text(sql_file, file, line, keys.place())?,
        _ => {
            return Err(keys.error(
                line,
                "it needs sql or file, and one of them only",
                "write `sql: SELECT ...` or `file: stage.sql`",
            ));
        }
    };
    let for_each = for_each(file, &mut keys)?;
    let claim = |keys: &Keys<'_>, what: &str, claimed: u32, all: Option<u32>| match all {
        Some(all) if claimed > all => Err(keys.error(
            line,
            format!("it claims more {what} than `resources:` has"),
            format!("raise {what} there, or lower it here"),
        )),
        _ => Ok(()),
    };
    let memory_mib = keys
        .parsed("memory", "`memory: 4GiB`", mebibytes)?
        .unwrap_or(0);
    claim(&keys, "memory", memory_mib, resources.memory_mib)?;
    let gpu = keys.count("gpu")?.unwrap_or(0);
    claim(&keys, "gpu", gpu, Some(resources.gpu))?;
    let concurrency = keys.count("concurrency")?;
    if concurrency == Some(0) {
        return Err(keys.error(line, "concurrency is 0", "write 1 or more"));
    }
    let mut checks = Vec::new();
    for node in keys.nodes("checks") {
        checks.push(check(file, keys.place(), node)?);
    }
    let stage = StageSpec {
        line,
        sql,
        sql_file,
        needs: keys.texts("needs")?,
        for_each,
        concurrency,
        memory_mib,
        gpu,
        retries: retries(file, &mut keys)?,
        timeout: keys.parsed("timeout", "a duration, such as 30m", duration)?,
        keep_going: keys
            .parsed("on_error", "stop or continue", |text| match text {
                "stop" => Some(false),
                "continue" => Some(true),
                _ => None,
            })?
            .unwrap_or(false),
        always: keys.flag("always")?,
        inputs: keys.texts("inputs")?,
        outputs: keys.texts("outputs")?,
        checks,
        name,
    };
    keys.end()?;
    Ok(stage)
}

fn for_each(file: &Path, keys: &mut Keys<'_>) -> Result<Option<ForEach>, SpecError> {
    let Some(node) = keys.take("for_each") else {
        return Ok(None);
    };
    let line = node.line;
    if let Value::Text(query) = node.value {
        return Ok(Some(ForEach {
            query,
            key: None,
            line,
        }));
    }
    let mut inner = Keys::of(file, format!("{}: for_each", keys.place()), node)?;
    let all = ForEach {
        query: inner.required("query")?,
        key: inner.text("key")?,
        line,
    };
    inner.end()?;
    Ok(Some(all))
}

fn retries(file: &Path, keys: &mut Keys<'_>) -> Result<Retries, SpecError> {
    let mut retries = Retries {
        times: 0,
        delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(300),
    };
    let Some(node) = keys.take("retries") else {
        return Ok(retries);
    };
    if let Value::Number(number) = &node.value {
        retries.times = number
            .as_u64()
            .and_then(|times| u32::try_from(times).ok())
            .filter(|times| *times <= 1000)
            .ok_or_else(|| {
                keys.error(
                    node.line,
                    "retries is no number up to 1000",
                    "write `retries: 3`",
                )
            })?;
        return Ok(retries);
    }
    let mut inner = Keys::of(file, format!("{}: retries", keys.place()), node)?;
    retries.times = inner.count("times")?.unwrap_or(3).min(1000);
    if let Some(delay) = inner.parsed("delay", "a duration, such as 1s", duration)? {
        retries.delay = delay;
    }
    if let Some(delay) = inner.parsed("max_delay", "a duration, such as 5m", duration)? {
        retries.max_delay = delay;
    }
    inner.end()?;
    Ok(retries)
}

fn check(file: &Path, place: &str, node: Node) -> Result<Check, SpecError> {
    let mut keys = Keys::of(file, format!("{place}: a check"), node)?;
    let check = Check {
        line: keys.line(),
        name: keys.required("name")?,
        sql: keys.required("sql")?,
        severity: keys
            .parsed("severity", "warn or error", |text| match text {
                "warn" => Some(Severity::Warn),
                "error" => Some(Severity::Error),
                _ => None,
            })?
            .unwrap_or(Severity::Error),
    };
    keys.end()?;
    Ok(check)
}

/// `90s`, `30m`, `1h`, `2d`, `250ms`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit.trim() {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}

/// `512MiB`, `16GiB`, in MiB, rounded up.
fn mebibytes(text: &str) -> Option<u32> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    let bytes = match unit.trim() {
        "MiB" | "M" => f64::from(1u32 << 20),
        "GiB" | "G" => f64::from(1u32 << 30),
        "TiB" | "T" => f64::from(1u32 << 20) * f64::from(1u32 << 20),
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return None,
    };
    let mebibytes = (number * bytes / f64::from(1u32 << 20)).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 2^30"
    )]
    (1.0..=f64::from(1u32 << 30))
        .contains(&mebibytes)
        .then_some(mebibytes as u32)
}
