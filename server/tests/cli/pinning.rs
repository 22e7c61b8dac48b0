//! `--cpu-affinity`, as the system sees it.
#![cfg(target_os = "linux")]

use std::fs;

use pageloom_model_runner::allowed_cpus;

use crate::{Server, pageloom, run, text, tiny_model};

/// Name and allowed CPUs of each thread of a process.
fn threads(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let statuses = tasks.filter_map(|task| status(task.unwrap()));
    statuses
        .map(|status| {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            (field("Name:"), field("Cpus_allowed_list:"))
        })
        .collect()
}

#[test]
fn serve_pins_the_thread_of_the_steps_and_not_those_of_http() {
    let own = threads(std::process::id());
    let unpinned = &own[0].1;
    let cpu = allowed_cpus().unwrap().pop().unwrap().to_string();
    let server = Server::start(&["--cpu-affinity", &cpu]);
    let pinned = format!("1 threads pinned to CPUs {cpu},");
    assert!(server.banner.contains(&pinned), "{}", server.banner);
    let body = r#"{"prompt": "hi", "max_tokens": 2, "temperature": 0}"#;
    let answer = server.answer("POST", "/v1/completions", body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let threads = threads(server.child.id());
    let (engine, others): (Vec<_>, Vec<_>) = threads
        .iter()
        .partition(|(name, _)| name == "pageloom-engine");
    assert_eq!(engine.len(), 1, "{threads:?}");
    assert_eq!(engine[0].1, cpu);
    assert!(others.len() >= 2, "{threads:?}");
    assert!(
        others.iter().all(|(_, cpus)| cpus == unpinned),
        "{threads:?}"
    );
}

#[test]
fn the_list_says_how_many_threads_there_are() {
    let allowed = allowed_cpus().unwrap();
    let list: Vec<String> = allowed.iter().map(usize::to_string).collect();
    let model = tiny_model();
    let sizes = [
        "--batch-sizes",
        "1",
        "--prompt-len",
        "4",
        "--output-len",
        "2",
    ];
    let output = pageloom(&["bench", "--cpu-affinity", &list.join(",")])
        .args(["--model", model.to_str().unwrap()])
        .args(sizes)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stderr);
    let expected = format!("{} threads pinned to CPUs ", allowed.len());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_list_that_cannot_be_had_is_an_error_that_names_the_flag() {
    let missing = (allowed_cpus().unwrap().pop().unwrap() + 1).to_string();
    for (list, code, part) in [
        (missing.as_str(), 1, "is not one of those"),
        ("", 2, "the list is empty"),
        ("1-0", 2, "1 is above 0"),
        ("0,0", 2, "CPU 0 is named twice"),
        ("0-99999999999", 2, "is above 1023"),
        ("two", 2, "is no number of a CPU"),
    ] {
        let output = run(&["generate", "--prompt", "a", "--cpu-affinity", list]);
        assert_eq!(output.status.code(), Some(code), "{list:?}: {output:?}");
        let message = text(&output.stderr);
        assert!(message.contains("--cpu-affinity"), "{message}");
        assert!(message.contains(part), "{list:?}: {message}");
    }
}
