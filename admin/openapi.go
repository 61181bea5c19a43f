package admin

import (
	_ "embed" // for the document
	"net/http"
)

// openAPI describes all four token APIs, in OpenAPI 3.1.
//
//go:embed openapi.yaml
var openAPI []byte

// OpenAPI serves the description of the token APIs, which holds no secret and
// needs no token: for GET and HEAD of /openapi.yaml.
func OpenAPI() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/yaml") // RFC 9512
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(openAPI) // the client is gone: nobody is left to tell
	})
}
