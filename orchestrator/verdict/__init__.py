"""What scores say, and how surely: values in, values out."""
