"""What is to be measured on a GPU, prepared for whoever has one: `bash benchmarks/gpu.sh`."""
