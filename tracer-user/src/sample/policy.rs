//! What is asked for: the flags `--sample` and `--engine-steps`, and the standard `OTEL_TRACES_SAMPLER` variables, as data.
//!
//! `--sample` is `all`, `none` or a share (`0.1`, `10%`), and after a share, with commas: `slow>TIME`, `slowest=SHARE`; after any
//! of them `ignore-parent`. The flag wins over the variables. Refused: any other word, a share outside 0 to 1, what would change
//! nothing (`all,slow>2s`), samplers of the specification that need a service (`jaeger_remote`, `xray`).

use std::str::FromStr;

use crate::exit::{Code, Failure};

/// Which requests are exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    pub base: Base,
    /// Failed, aborted and rejected requests, and those whose end was not seen, are exported whatever `base` says.
    pub keeps_failed: bool,
    /// … and those that took longer than this, seconds.
    pub slow: Option<f64>,
    /// … and this share of the recent requests, the slowest.
    pub slowest: Option<f64>,
    /// A `traceparent` decides alone when there is one.
    pub follows_parent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Base {
    All,
    None,
    /// By trace id.
    Ratio(f64),
}

/// Which engine steps are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineSteps {
    /// None
    Off,
    /// Those that exported requests link to, and a few outliers
    #[default]
    Linked,
    /// Every one
    All,
}

impl Default for Policy {
    fn default() -> Self {
        Self::plain(Base::All)
    }
}

impl Policy {
    const fn plain(base: Base) -> Self {
        Self { base, keeps_failed: false, slow: None, slowest: None, follows_parent: true }
    }

    /// Whether traces that begin here (and not at a caller) are exported at all.
    pub fn takes_roots(&self) -> bool {
        self.base != Base::None
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',').map(str::trim);
        let mut policy = match words.next().unwrap_or_default() {
            "all" => Self::plain(Base::All),
            "none" => Self::plain(Base::None),
            word => {
                let ratio =
                    share(word).ok_or_else(|| format!("`{word}` is neither all, none nor a share from 0 to 1"))?;
                Self { keeps_failed: true, ..Self::plain(Base::Ratio(ratio)) }
            }
        };
        for word in words {
            if word == "ignore-parent" && policy.follows_parent {
                policy.follows_parent = false;
                continue;
            }
            let is_share = policy.keeps_failed;
            if let Some(time) = word.strip_prefix("slow>").filter(|_| policy.slow.is_none()) {
                let seconds = seconds(time).ok_or_else(|| format!("`{time}` is no time; write 500ms, 2s or 1m"))?;
                policy.slow = Some(seconds);
            } else if let Some(part) = word.strip_prefix("slowest=").filter(|_| policy.slowest.is_none()) {
                let part = share(part).filter(|part| *part > 0.0);
                policy.slowest = Some(part.ok_or("`slowest=` wants a share above 0, such as 1% or 0.01")?);
            } else {
                return Err(format!("`{word}` is no option (or there twice): slow>TIME, slowest=SHARE, ignore-parent"));
            }
            if !is_share {
                return Err(format!(
                    "`{word}` goes with a share: all keeps every request and none keeps none; write 0,{word}"
                ));
            }
        }
        Ok(policy)
    }
}

/// `0.1` or `10%`.
fn share(text: &str) -> Option<f64> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (0.0..=1.0).contains(&value).then_some(value)
}

/// `500ms`, `2s`, `2`, `1m`.
fn seconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let factor = match &text[unit..] {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    let value = text[..unit].parse::<f64>().ok()? * factor;
    (value.is_finite() && value >= 0.0).then_some(value)
}

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";

/// The policy that the flag, or else the variables (looked up by `env`), ask for.
pub fn resolve(flag: Option<Policy>, env: impl Fn(&str) -> Option<String>) -> Result<Policy, Failure> {
    let env = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    if let Some(policy) = flag {
        return Ok(policy);
    }
    let Some(sampler) = env(SAMPLER) else { return Ok(Policy::default()) };
    let ratio = || match env(SAMPLER_ARG) {
        None => Ok(Base::Ratio(1.0)),
        Some(text) => {
            text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).map(Base::Ratio).ok_or_else(|| {
                let what = format!("{SAMPLER_ARG}={text:?} is no ratio");
                Failure::new(Code::Usage, what, "set it to a number from 0 to 1, or unset it")
            })
        }
    };
    let (root, follows_parent) = match sampler.strip_prefix("parentbased_") {
        Some(root) => (root, true),
        None => (&*sampler, false),
    };
    let base = match root {
        "always_on" => Base::All,
        "always_off" => Base::None,
        "traceidratio" => ratio()?,
        _ => {
            let what = format!("{SAMPLER}={sampler:?} is not supported");
            let fix =
                "set it to always_on, always_off, traceidratio or one of these after parentbased_, or use --sample";
            return Err(Failure::new(Code::Usage, what, fix));
        }
    };
    Ok(Policy { follows_parent, ..Policy::plain(base) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Policy {
        text.parse().unwrap()
    }

    #[test]
    fn a_policy_is_a_base_and_what_is_always_kept() {
        assert_eq!(parsed("all"), Policy::default());
        assert_eq!(parsed("none").base, Base::None);
        let ratio = parsed("0.1");
        assert_eq!((ratio.base, ratio.keeps_failed, ratio.follows_parent), (Base::Ratio(0.1), true, true));
        assert_eq!(parsed("10%"), ratio);
        assert_eq!(parsed("0,slow>1500ms").slow, Some(1.5));
        assert_eq!(parsed("0.05, slow>2s, slowest=1%").slowest, Some(0.01));
        assert!(!parsed("0.5,ignore-parent").follows_parent);
        assert!(!parsed("all,ignore-parent").follows_parent);
    }

    #[test]
    fn what_says_nothing_clear_is_refused() {
        for text in [
            "",
            "some",
            "1.5",
            "-0.1",
            "nan",
            "101%",
            "all,slow>2s",
            "none,slowest=1%",
            "0.1,slow>",
            "0.1,slow>2d",
            "0.1,slowest=0",
            "0.1,fast",
            "0.1,slow>1s,slow>2s",
            "0.1,",
            "0.1,ignore-parent,ignore-parent",
        ] {
            assert!(text.parse::<Policy>().is_err(), "{text}");
        }
        assert!("all,slow>2s".parse::<Policy>().unwrap_err().contains("write 0,slow>2s"));
    }

    fn resolved(flag: Option<Policy>, vars: &[(&str, &str)]) -> Result<Policy, String> {
        let env = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        resolve(flag, env).map_err(|failure| failure.what)
    }

    #[test]
    fn the_standard_samplers_mean_what_the_specification_says() {
        assert_eq!(resolved(None, &[]), Ok(Policy::default()));
        for (name, arg, base, follows_parent) in [
            ("always_on", "", Base::All, false),
            ("always_off", "", Base::None, false),
            ("traceidratio", "0.25", Base::Ratio(0.25), false),
            ("traceidratio", "", Base::Ratio(1.0), false),
            ("parentbased_always_on", "junk", Base::All, true),
            ("parentbased_always_off", "", Base::None, true),
            ("parentbased_traceidratio", "0.5", Base::Ratio(0.5), true),
        ] {
            let policy = resolved(None, &[(SAMPLER, name), (SAMPLER_ARG, arg)]).unwrap();
            assert_eq!(policy, Policy { follows_parent, ..Policy::plain(base) }, "{name}");
        }
    }

    #[test]
    fn the_flag_wins_and_unknown_samplers_are_refused() {
        let flag = parsed("0.1");
        assert_eq!(resolved(Some(flag), &[(SAMPLER, "xray")]), Ok(flag));
        assert!(resolved(None, &[(SAMPLER, "xray")]).unwrap_err().contains("xray"));
        assert!(resolved(None, &[(SAMPLER, "parentbased_jaeger_remote")]).is_err());
        assert!(resolved(None, &[(SAMPLER, "traceidratio"), (SAMPLER_ARG, "10")]).unwrap_err().contains(SAMPLER_ARG));
    }
}
