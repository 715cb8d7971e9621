//! What the documents claim: every TOML block loads, every command exists,
//! every file they point to is there.

use std::path::Path;

use svidgate::{Config, Overrides};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "DECISIONS.md",
    "THREATS.md",
    "CHANGELOG.md",
];

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(tag)) if tag.trim() == language => block = Some(String::new()),
            (Some(_), Some(_)) => found.extend(block.take()),
            (Some(block), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, _) => {}
        }
    }
    found
}

#[test]
fn every_toml_block_is_a_good_configuration() {
    let mut checked = 0;
    for name in DOCUMENTS {
        for block in blocks(&read(name), "toml") {
            if block.contains("[dependencies]") {
                continue;
            }
            if let Err(error) = Config::parse(&block, &Overrides::default()) {
                panic!("{name}:\n{block}\n{error}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 2, "{checked}");
}

#[test]
fn every_configuration_in_fixtures_loads() {
    let mut checked = 0;
    for entry in std::fs::read_dir(Path::new(ROOT).join("fixtures/config")).unwrap() {
        let path = entry.unwrap().path();
        let overrides = Overrides {
            workload_api_addr: Some("unix:///run/agent.sock".to_owned()),
            ..Overrides::default()
        };
        if let Err(error) = Config::load(&path, &overrides) {
            panic!("{}:\n{error}", path.display());
        }
        checked += 1;
    }
    assert_eq!(checked, 2);
}

#[test]
fn every_command_is_one_that_exists() {
    let makefile = read("Makefile");
    let mut checked = 0;
    for name in DOCUMENTS {
        for line in blocks(&read(name), "sh")
            .iter()
            .flat_map(|block| block.lines())
        {
            let line = line.split('#').next().unwrap().trim();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("make") => {
                    let target = words.next().unwrap_or("help");
                    let rule = makefile.lines().any(|rule| {
                        rule.split_once(':').is_some_and(|(targets, _)| {
                            targets.split_whitespace().any(|it| it == target)
                        })
                    });
                    assert!(rule, "{name}: {line}");
                }
                Some(program) if program.ends_with("svidgate") => {
                    for flag in words.filter(|word| word.starts_with("--")) {
                        let known = [
                            "--config",
                            "--check",
                            "--workers",
                            "--workload-api-addr",
                            "--version",
                            "--help",
                        ];
                        assert!(known.contains(&flag), "{name}: {line}");
                    }
                }
                Some("curl" | "nc" | "cargo" | "kill" | "git") | None => {}
                Some(_) => panic!("{name}: what is this? {line}"),
            }
            checked += 1;
        }
    }
    assert!(checked > 3, "{checked}");
}

/// Each test that a document names in backticks as `file::test` exists.
#[test]
fn every_test_that_the_threat_model_names_exists() {
    let text = read("THREATS.md");
    let mut sources = String::new();
    let mut folders = vec![Path::new(ROOT).join("tests"), Path::new(ROOT).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut checked = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let is_test_name = name.len() > 12
            && name.contains('_')
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if is_test_name && !name.contains("::") {
            assert!(sources.contains(&format!("fn {name}(")), "no test {name}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}
