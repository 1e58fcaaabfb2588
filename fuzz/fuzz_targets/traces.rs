#![cfg_attr(fuzzing, no_main)]
inferspan_fuzz::target!(traces);
