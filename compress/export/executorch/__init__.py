"""ExecuTorch: one program for phones and boards, its products on XNNPACK, its KV cache inside."""
