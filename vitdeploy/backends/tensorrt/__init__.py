"""TensorRT and TensorRT-RTX: engines built where they run, by one code for both."""
