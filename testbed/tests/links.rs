//! Links between the documents lead to existing files and headings.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};

/// Returns the lines of a page outside code blocks.
fn prose(page: &Path) -> Vec<String> {
    let (text, mut is_code) = (std::fs::read_to_string(page).unwrap(), false);
    let is_prose = |line: &&str| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    };
    text.lines().filter(is_prose).map(str::to_owned).collect()
}

/// Returns GitHub's anchors of the headings of a page: in lower case, without punctuation, spaces as hyphens,
/// and a number after the second heading of the same name.
fn anchors(page: &Path) -> Vec<String> {
    let (mut names, mut anchors): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for line in prose(page) {
        let Some((_, heading)) =
            line.split_once("# ").filter(|(hashes, _)| hashes.bytes().all(|byte| byte == b'#'))
        else {
            continue;
        };
        let kept = heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
        let name = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let before = names.iter().filter(|other| **other == name).count();
        anchors.push(if before == 0 { name.clone() } else { format!("{name}-{before}") });
        names.push(name);
    }
    anchors
}

/// Returns the targets of a page's links to other documents.
fn links(page: &Path) -> Vec<String> {
    let text = prose(page).join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|target| !target.starts_with("http://") && !target.starts_with("https://")).collect()
}

#[test]
fn links_between_documents_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"]
        .map(|page| root.join(page))
        .into();
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    let (mut followed, mut headings, mut broken) = (0, 0, Vec::new());
    for page in &pages {
        for link in links(page) {
            let (file, heading) =
                link.split_once('#').map_or((&*link, None), |(file, heading)| (file, Some(heading)));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let leads = target.exists()
                && heading.is_none_or(|heading| anchors(&target).iter().any(|name| name == heading));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
            (followed, headings) = (followed + 1, headings + usize::from(heading.is_some()));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 60 && headings > 8, "only {followed} links, {headings} of them to a heading");
}
