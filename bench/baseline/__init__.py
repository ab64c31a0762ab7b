"""The code that pggan_fast is compared with. Nothing here may use an op of pggan_fast."""
