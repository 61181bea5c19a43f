// This file lets yield.go declare a function without a body.
