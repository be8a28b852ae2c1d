//! Code that must not compile, and our messages in the compiler's errors.
//!
//! Each file in `tests/compile_fail` is compiled. A comment `//~ text` means that the next line of code must have an error
//! with `text` in its message, labels or notes. A file fails the test if an expected text is missing, or if a line without
//! such a comment has an error. The rest of the compiler's output is ignored, because it changes with each version.

use std::{fs, ops::RangeInclusive, path::Path, process::Command};

use flipswitch_tests_rustc_args::rustc_args;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compile_fail");

/// An error of the compiler.
#[derive(Debug)]
struct Error {
    lines: RangeInclusive<usize>,
    text: String,
}

/// Compiles a file with the libraries that these tests were built with.
fn compile(file: &Path) -> Vec<Error> {
    const ARGS: &[&str] = rustc_args!();
    let (compiler, args) = ARGS.split_first().unwrap();
    let libraries = args.windows(2).filter(|pair| ["-L", "--extern", "--target"].contains(&pair[0])).flatten();
    let output = tempfile::tempdir().unwrap();
    let result = Command::new(compiler)
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=json", "--allow=warnings"])
        .args(libraries)
        .arg("--out-dir")
        .arg(output.path())
        .arg(file)
        .output()
        .unwrap();
    let stderr = String::from_utf8(result.stderr).unwrap();
    let errors: Vec<_> = stderr.lines().filter_map(|line| error(&serde_json::from_str(line).expect(line))).collect();
    assert_eq!(result.status.success(), errors.is_empty(), "{stderr}");
    errors
}

/// Reads a diagnostic, if it is an error in the file.
fn error(diagnostic: &Value) -> Option<Error> {
    let spans = || diagnostic["spans"].as_array().into_iter().flatten();
    let primary = spans().find(|span| diagnostic["level"] == "error" && span["is_primary"] == true)?;
    let line = |end: &str| primary[end].as_u64().and_then(|line| usize::try_from(line).ok());
    let notes = diagnostic["children"].as_array().into_iter().flatten().map(|note| &note["message"]);
    // `rendered` is not used, because it quotes the file and therefore contains every expected text.
    let texts = [&diagnostic["message"]].into_iter().chain(spans().map(|span| &span["label"])).chain(notes);
    let text = texts.filter_map(Value::as_str).collect::<Vec<_>>().join("\n");
    Some(Error { lines: line("line_start")?..=line("line_end")?, text })
}

/// Returns the lines that must have errors, each with its expected texts.
fn expected(code: &str) -> Vec<(usize, Vec<&str>)> {
    let (mut expected, mut texts) = (Vec::new(), Vec::new());
    for (line, code) in (1..).zip(code.lines()) {
        match code.trim_start().strip_prefix("//~ ") {
            Some(text) => texts.push(text),
            None if texts.is_empty() => {}
            None => expected.push((line, std::mem::take(&mut texts))),
        }
    }
    expected
}

#[test]
fn compiler_errors_contain_our_messages() {
    for entry in fs::read_dir(FOLDER).unwrap() {
        let file = entry.unwrap().path();
        let (name, code) = (file.display(), fs::read_to_string(&file).unwrap());
        let (expected, errors) = (expected(&code), compile(&file));
        assert_eq!(expected.is_empty(), file.ends_with("correct.rs"), "{name}: only correct.rs has no expected errors");
        for error in &errors {
            let is_expected = expected.iter().any(|(line, _)| error.lines.contains(line));
            assert!(is_expected, "{name}: unexpected error {error:#?}");
        }
        for (line, texts) in expected {
            let here: Vec<_> = errors.iter().filter(|error| error.lines.contains(&line)).collect();
            for text in texts {
                assert!(here.iter().any(|error| error.text.contains(text)), "{name}:{line}: no {text:?} in {here:#?}");
            }
        }
    }
}

/// Compiles the correct counterparts of the other files. This shows that the other files do not fail because of a missing
/// library.
#[test]
fn correct_code_compiles() {
    let errors = compile(&Path::new(FOLDER).join("correct.rs"));
    assert!(errors.is_empty(), "{errors:#?}");
}
