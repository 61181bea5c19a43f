package admin

import "net/http"

// Status is the HTTP status of the kind wherever a contract does not say
// otherwise. An unknown kind is a fault of ours.
func (k Kind) Status() int {
	switch k {
	case KindAmbiguous, KindMalformed:
		return http.StatusBadRequest
	case KindMissingToken, KindInvalidToken:
		return http.StatusUnauthorized
	case KindSource, KindScope, KindAccess, KindGrace, KindWider:
		return http.StatusForbidden
	case KindNotFound, KindNoPath:
		return http.StatusNotFound
	case KindMethod:
		return http.StatusMethodNotAllowed
	case KindBodyTimeout:
		return http.StatusRequestTimeout
	case KindConflict:
		return http.StatusConflict
	case KindPrecondition:
		return http.StatusPreconditionFailed
	case KindTooLarge:
		return http.StatusRequestEntityTooLarge
	case KindMediaType:
		return http.StatusUnsupportedMediaType
	case KindInvalid, KindKeyReused:
		return http.StatusUnprocessableEntity
	case KindRateLimited:
		return http.StatusTooManyRequests
	case KindBadGateway:
		return http.StatusBadGateway
	case KindUnavailable:
		return http.StatusServiceUnavailable
	case KindGatewayTimeout:
		return http.StatusGatewayTimeout
	case KindInternal, KindOutcomeUnknown:
	}
	return http.StatusInternalServerError
}
