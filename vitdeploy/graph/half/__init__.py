"""FP16 and BF16: what a graph looks like in half precision, and what must stay in FP32."""
