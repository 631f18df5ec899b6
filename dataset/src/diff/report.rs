//! A diff as a file: JSON for programs, one HTML page for people. Differences are written as they come.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sparse_delta::DeltaError;
use sparse_store::{Replace, Staged};

use super::{DiffOp, DiffRow, DiffSummary};
use crate::DatasetError;
use crate::error::During;

/// Differences that an HTML page shows: more than anybody reads, and as many as a browser bears.
pub const HTML_ROWS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Html,
}

/// A report in the making. It appears whole, when it is finished.
pub struct Report {
    form: Form,
    path: PathBuf,
    staged: Option<Staged>,
    out: Box<dyn Write + Send>,
    rows: u64,
}

impl Report {
    /// A report that goes to a file, which is replaced if it is there: `.json` or `.html`.
    ///
    /// # Errors
    /// Another ending, and a place that cannot be written to.
    pub fn create(path: &Path) -> Result<Self, DatasetError> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let form = match ending.map(str::to_ascii_lowercase).as_deref() {
            Some("json") => Form::Json,
            Some("html" | "htm") => Form::Html,
            _ => {
                return Err(DatasetError::usage(format!(
                    "{}: a report is a .json or .html file",
                    path.display()
                )));
            }
        };
        if path.is_dir() {
            return Err(DeltaError::Refused {
                path: path.into(),
                why: "it is a folder; give a file for the report".to_owned(),
            }
            .into());
        }
        let staged = Staged::file(path)?;
        let file = File::create(staged.path()).during("create", staged.path())?;
        let out = Box::new(BufWriter::new(file));
        Self::start(form, path.to_path_buf(), Some(staged), out)
    }

    /// A report as JSON that goes to a writer.
    ///
    /// # Errors
    /// What the writer returns.
    pub fn json(out: impl Write + Send + 'static) -> Result<Self, DatasetError> {
        Self::start(Form::Json, PathBuf::from("the output"), None, Box::new(out))
    }

    fn start(
        form: Form,
        path: PathBuf,
        staged: Option<Staged>,
        out: Box<dyn Write + Send>,
    ) -> Result<Self, DatasetError> {
        let mut report = Self {
            form,
            path,
            staged,
            out,
            rows: 0,
        };
        report.put(match form {
            Form::Json => "{\"rows\": [",
            Form::Html => HEAD,
        })?;
        Ok(report)
    }

    fn put(&mut self, text: &str) -> Result<(), DatasetError> {
        self.out
            .write_all(text.as_bytes())
            .during("write", &self.path)
    }

    /// The next differences.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn rows(&mut self, rows: &[DiffRow]) -> Result<(), DatasetError> {
        for row in rows {
            match self.form {
                Form::Json => {
                    let json = serde_json::to_string(row)
                        .map_err(|error| DatasetError::internal(error.to_string()))?;
                    self.put(if self.rows == 0 { "\n" } else { ",\n" })?;
                    self.put(&json)?;
                }
                Form::Html if self.rows < HTML_ROWS => self.put(&html_row(row))?,
                Form::Html => {}
            }
            self.rows += 1;
        }
        Ok(())
    }

    /// The summary, and the end. A file appears now.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn finish(mut self, summary: &DiffSummary) -> Result<(), DatasetError> {
        match self.form {
            Form::Json => {
                let json = serde_json::to_string_pretty(summary)
                    .map_err(|error| DatasetError::internal(error.to_string()))?;
                self.put(&format!("\n],\n\"summary\": {json}}}\n"))?;
            }
            Form::Html => {
                let page = html_summary(summary, self.rows);
                self.put(&page)?;
            }
        }
        self.out.flush().during("write", &self.path)?;
        drop(self.out);
        if let Some(staged) = self.staged {
            staged.commit(Replace::Allow)?;
        }
        Ok(())
    }
}

/// The page until the differences. The summary is known after them and shown before them.
const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Dataset diff</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; display: flex; flex-direction: column; color: #1a1a1a; }
#summary { order: -1; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; }
th, td { border: 1px solid #d0d0d0; padding: 0.25em 0.6em; text-align: left; vertical-align: top; }
th { background: #f2f2f2; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.v { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 40em; }
tr.added td.v { background: #eaf7ea; }
tr.removed td.v { background: #fbecec; }
tr.changed td.before { background: #fbecec; }
tr.changed td.after { background: #eaf7ea; }
</style>
</head>
<body>
<section>
<h2>Differences</h2>
<table>
<thead><tr><th>op</th><th>split</th><th>row in base</th><th>row in derivative</th><th>column</th><th>before</th><th>after</th></tr></thead>
<tbody>
"#;

fn html_row(row: &DiffRow) -> String {
    let number = |row: Option<u64>| row.map(|row| row.to_string()).unwrap_or_default();
    let text = |text: &Option<String>| escape(text.as_deref().unwrap_or_default());
    format!(
        "<tr class=\"{op}\"><td>{op}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td>\
         <td class=\"v before\">{}</td><td class=\"v after\">{}</td></tr>\n",
        escape(&row.split),
        number(row.base_row),
        number(row.derivative_row),
        text(&row.column),
        text(&row.before),
        text(&row.after),
        op = row.op.name(),
    )
}

fn html_summary(summary: &DiffSummary, rows: u64) -> String {
    let mut out = String::from("</tbody>\n</table>\n");
    if rows > HTML_ROWS {
        out += &format!(
            "<p>{} more are not shown here; a report in JSON has them all.</p>\n",
            rows - HTML_ROWS
        );
    }
    out += "</section>\n<section id=\"summary\">\n<h1>Dataset diff</h1>\n";
    let key = if summary.key.is_empty() {
        "their content".to_owned()
    } else {
        escape(&summary.key.join(", "))
    };
    out += &format!(
        "<p>Base: {}<br>Derivative: {}<br>Rows matched by: {key}</p>\n",
        escape(&summary.base),
        escape(&summary.derivative)
    );
    let counts: Vec<String> = [
        DiffOp::Changed,
        DiffOp::Added,
        DiffOp::Removed,
        DiffOp::Schema,
    ]
    .map(|op| format!("{} {}", summary.count(op), op.name()))
    .to_vec();
    out += &format!("<p><b>{}</b></p>\n", counts.join(", "));
    out += "<table>\n<tr><th>split</th><th>base rows</th><th>derivative rows</th><th>same</th><th>changed</th><th>added</th>\
            <th>removed</th><th>moved</th><th>schema</th></tr>\n";
    let number = |value: u64| format!("<td class=\"n\">{value}</td>");
    for split in &summary.splits {
        let numbers: String = [
            split.base_rows,
            split.derivative_rows,
            split.same,
            split.changed,
            split.added,
            split.removed,
            split.moved,
            split.schema,
        ]
        .map(number)
        .concat();
        out += &format!("<tr><td>{}</td>{numbers}</tr>\n", escape(&split.split));
    }
    out += "</table>\n<table>\n<tr><th>split</th><th>column</th><th>status</th><th>type in base</th><th>type in derivative</th>\
            <th>values changed</th><th>from null</th><th>to null</th></tr>\n";
    for split in &summary.splits {
        for column in &split.columns {
            let text = |text: &Option<String>| escape(text.as_deref().unwrap_or_default());
            out += &format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{}{}{}</tr>\n",
                escape(&split.split),
                escape(&column.column),
                escape(&column.status),
                text(&column.base_type),
                text(&column.derivative_type),
                number(column.changed),
                number(column.from_null),
                number(column.to_null),
            );
        }
    }
    out + "</table>\n</section>\n</body>\n</html>\n"
}

/// Text that is only text in HTML, in attributes too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Characters that turn the direction of writing could make text look like other text.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_value_is_markup() {
        assert_eq!(
            escape("<script>alert('&\"')</script>\u{202e}"),
            "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;\\u202e"
        );
    }
}
