// This file lets raw_linux.go declare a function without a body.
