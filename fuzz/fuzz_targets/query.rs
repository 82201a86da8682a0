#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portolan_dns::fuzz::query(data));
