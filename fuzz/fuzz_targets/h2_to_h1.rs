#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svidgate_fuzz::h2_to_h1(input));
