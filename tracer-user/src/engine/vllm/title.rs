//! Process titles: what vLLM (0.10 and later) makes of a process's name and command line.
//!
//! Pure. `VLLM::EngineCore_DP1` in the command line, the first 15 bytes of it in the kernel's name. The prefix is the
//! operator's choice (`VLLM_PROCESS_NAME_PREFIX`); what follows `::` is not. Refused: other people's titles
//! (`ray::…`, C++ names), so a name counts only when it is one of vLLM's to the letter.

use crate::engine::process::Title;
use crate::input::Role;

/// Bytes of a name that the kernel keeps (`TASK_COMM_LEN` less the terminator).
const COMM_MAX: usize = 15;

/// The title of a process, by its first argument or, where that was not overwritten, by its name.
pub(super) fn title(first_argument: &str, comm: &str) -> Option<Title> {
    of_argument(first_argument).or_else(|| of_comm(comm))
}

fn of_argument(text: &str) -> Option<Title> {
    let (prefix, name) = text.split_once("::")?;
    if prefix.contains('/') || prefix == "ray" {
        return None;
    }
    let (stem, suffix) = name.split_once('_').unwrap_or((name, ""));
    let role = match stem {
        "APIServer" => Role::Api,
        "EngineCore" | "DPEngineCore" => Role::Engine,
        "Worker" | "WorkerProc" => Role::Worker,
        "DPCoordinator" => Role::Coordinator,
        _ => return None,
    };
    let words: Vec<&str> = suffix.split('_').filter(|word| !word.is_empty()).collect();
    // Words of a suffix: a bare number (`APIServer_0`), or letters and a number (`DP1`, `TP0`). Anything else is no title.
    if !words.iter().all(|word| is_rank(word)) {
        return None;
    }
    let index = words.iter().find_map(|word| word.strip_prefix("DP").unwrap_or(word).parse().ok());
    let rank = match role {
        Role::Worker => words.iter().filter(|word| !word.starts_with("DP")).copied().collect::<Vec<_>>().join("_"),
        _ => String::new(),
    };
    Some(Title { role, index, rank })
}

fn is_rank(word: &str) -> bool {
    let digits = word.trim_start_matches(|char: char| char.is_ascii_uppercase());
    !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name is cut, so it gives the role only, and a number only when nothing was cut off.
fn of_comm(comm: &str) -> Option<Title> {
    if comm.len() < COMM_MAX {
        return of_argument(comm);
    }
    let (prefix, name) = comm.split_once("::")?;
    if prefix == "ray" {
        return None;
    }
    let whole = [
        ("APIServer", Role::Api),
        ("EngineCore", Role::Engine),
        ("DPEngineCore", Role::Engine),
        ("Worker", Role::Worker),
        ("DPCoordinator", Role::Coordinator),
    ];
    // At least four letters, or the prefix has left too little to tell.
    let (_, role) = whole.into_iter().find(|(stem, _)| {
        (name.len() >= 4 && stem.starts_with(name)) || name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('_'))
    })?;
    Some(Title { role, index: None, rank: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(argument: &str, comm: &str) -> Option<(Role, Option<u32>, String)> {
        title(argument, comm).map(|title| (title.role, title.index, title.rank))
    }

    #[test]
    fn titles_give_role_and_rank() {
        for (text, role, index, rank) in [
            ("VLLM::EngineCore", Role::Engine, None, ""),
            ("VLLM::EngineCore_DP1", Role::Engine, Some(1), ""),
            ("VLLM::EngineCore_0", Role::Engine, Some(0), ""),
            ("VLLM::DPEngineCore_3", Role::Engine, Some(3), ""),
            ("VLLM::APIServer_12", Role::Api, Some(12), ""),
            ("VLLM::APIServer_DP3", Role::Api, Some(3), ""),
            ("VLLM::Worker", Role::Worker, None, ""),
            ("VLLM::Worker_TP0", Role::Worker, None, "TP0"),
            ("VLLM::Worker_DP1_PP0_TP1_EP3", Role::Worker, Some(1), "PP0_TP1_EP3"),
            ("VLLM::DPCoordinator", Role::Coordinator, None, ""),
            ("my team::EngineCore_DP0", Role::Engine, Some(0), ""),
        ] {
            assert_eq!(parts(text, ""), Some((role, index, rank.to_owned())), "{text}");
        }
    }

    #[test]
    fn names_that_the_kernel_cut_give_the_role() {
        for (comm, role) in [
            ("VLLM::EngineCor", Role::Engine),
            ("VLLM::APIServer", Role::Api),
            ("VLLM::DPCoordin", Role::Coordinator),
            ("VLLM::Worker_TP", Role::Worker),
            ("VLLM::Worker", Role::Worker),
            ("TEAM_A::EngineC", Role::Engine),
        ] {
            assert_eq!(parts("demo-engine", comm).map(|parts| parts.0), Some(role), "{comm}");
        }
    }

    #[test]
    fn other_titles_are_none_of_ours() {
        for (argument, comm) in [
            ("ray::RayWorkerWrapper.execute_method", "ray::RayWorkerW"),
            ("ray::Worker", "ray::Worker"),
            ("VLLM::Workers", "x"),
            ("VLLM::Worker_of_month", "x"),
            ("/opt/a::EngineCore", "x"),
            ("std::vector", "averylongname::W"),
            ("VLLM:EngineCore", "vllm"),
            ("", ""),
            ("::", "::"),
            ("VLLM::EngineCore_DP99999999999", ""),
        ] {
            assert_eq!(parts(argument, comm), None, "{argument} {comm}");
        }
    }
}
