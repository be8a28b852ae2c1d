//! What the compiler says to mistakes that users make, as far as the words are ours.
//!
//! Each file of `tests/mistakes` is compiled. A line `//~ text` there means that the compiler must find fault with the next
//! line of code, and that `text` must be in what it says to that; nothing else may be wrong. What it says beside that
//! changes from one compiler to the next.

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
};

use flipswitch_tests_invocation::invocation;
use serde_json::Value;

/// How the compiler was called for these tests.
const INVOCATION: &[&str] = invocation!();

/// What the compiler finds wrong.
#[derive(Debug)]
struct Fault {
    lines: RangeInclusive<usize>,
    text: String,
}

/// What must be said to a line.
#[derive(Debug)]
struct Expected<'a> {
    line: usize,
    texts: Vec<&'a str>,
}

/// A file of `tests/mistakes`.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mistakes").join(name)
}

/// Compiles a file with the libraries of these tests, and returns what is wrong with it.
fn compile(file: &Path) -> Vec<Fault> {
    let (compiler, arguments) = INVOCATION.split_first().unwrap();
    let libraries = arguments.windows(2).filter(|pair| ["-L", "--extern", "--target"].contains(&pair[0])).flatten();
    let output = tempfile::tempdir().unwrap();
    let outcome = Command::new(compiler)
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=json", "--allow=warnings"])
        .args(libraries)
        .arg("--out-dir")
        .arg(output.path())
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8(outcome.stderr).unwrap();
    let faults: Vec<_> = said.lines().filter_map(|line| fault(&serde_json::from_str(line).expect(line))).collect();
    assert_eq!(outcome.status.success(), faults.is_empty(), "{said}");
    faults
}

/// Reads a message of the compiler, if it is an error with a place.
fn fault(message: &Value) -> Option<Fault> {
    let spans = || message["spans"].as_array().into_iter().flatten();
    let primary = spans().find(|span| message["level"] == "error" && span["is_primary"] == true)?;
    let line = |end: &str| primary[end].as_u64().and_then(|line| usize::try_from(line).ok());
    let notes = message["children"].as_array().into_iter().flatten().map(|note| &note["message"]);
    // Without the code that is shown along, since the texts that are looked for stand there, too.
    let words = [&message["message"]].into_iter().chain(spans().map(|span| &span["label"])).chain(notes);
    let text = words.filter_map(Value::as_str).collect::<Vec<_>>().join("\n");
    Some(Fault { lines: line("line_start")?..=line("line_end")?, text })
}

/// Reads the texts that a file expects.
fn expected(code: &str) -> Vec<Expected<'_>> {
    let (mut expected, mut texts) = (Vec::new(), Vec::new());
    for (line, code) in (1..).zip(code.lines()) {
        match code.trim_start().strip_prefix("//~ ") {
            Some(text) => texts.push(text),
            None if texts.is_empty() => {}
            None => expected.push(Expected { line, texts: std::mem::take(&mut texts) }),
        }
    }
    expected
}

#[test]
fn mistakes_are_told_in_our_words() {
    let names = fs::read_dir(file("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let (sane, mistaken): (Vec<_>, _) = names.partition(|name| name == "sane.rs");
    assert_eq!((sane.len(), mistaken.is_empty()), (1, false));
    for name in mistaken {
        let code = fs::read_to_string(file(&name)).unwrap();
        let (expected, faults) = (expected(&code), compile(&file(&name)));
        assert!(!expected.is_empty(), "{name} expects nothing");
        for fault in &faults {
            let is_expected = expected.iter().any(|expected| fault.lines.contains(&expected.line));
            assert!(is_expected, "{name}: nothing should be wrong here: {fault:#?}");
        }
        for Expected { line, texts } in expected {
            let here: Vec<_> = faults.iter().filter(|fault| fault.lines.contains(&line)).collect();
            for text in texts {
                assert!(here.iter().any(|fault| fault.text.contains(text)), "{name}:{line}: no {text:?} in {here:#?}");
            }
        }
    }
}

/// The same things done right: what the other files are told is not for want of a library.
#[test]
fn what_is_no_mistake_compiles() {
    let faults = compile(&file("sane.rs"));
    assert!(faults.is_empty(), "{faults:#?}");
}
