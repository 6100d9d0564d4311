#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qstage_fuzz::aligned(data));
