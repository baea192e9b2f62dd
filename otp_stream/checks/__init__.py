"""The checks of `otp-stream check` and `otp-stream topology`, by system. Only the command line imports them."""
