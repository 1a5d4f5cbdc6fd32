package protocol

// Paths of an agent's debug API, on its socket and for its hub (docs/DEBUG.md).
const (
	DebugHealth       = "/v1/health"
	DebugStatus       = "/v1/status"
	DebugPeers        = "/v1/peers"
	DebugPaths        = "/v1/paths"
	DebugNetmap       = "/v1/netmap"
	DebugRoutes       = "/v1/routes"
	DebugHubs         = "/v1/hubs"
	DebugRuntime      = "/v1/runtime"
	DebugIncidents    = "/v1/incidents"
	DebugUses         = "/v1/uses"
	DebugConntrack    = "/v1/conntrack"
	DebugPolicy       = "/v1/policy"
	DebugServices     = "/v1/services"
	DebugPing         = "/v1/ping"
	DebugTrace        = "/v1/trace"
	DebugEvidence     = "/v1/evidence"
	DebugConnections  = "/v1/connections"
	DebugLogs         = "/v1/logs"
	DebugCapture      = "/v1/capture"
	DebugLeave        = "/v1/leave"
	DebugRepair       = "/v1/repair"
	DebugRelease      = "/v1/release"
	DebugRotateKey    = "/v1/rotate-key"
	DebugMeasureOffer = "/v1/measure-offer"
	DebugMeasureRun   = "/v1/measure-run"
	DebugProve        = "/v1/prove"
	DebugProveSend    = "/v1/prove-send"
	DebugProveSeen    = "/v1/prove-seen"
)

// DebugWho is the header in which a hub says on whose behalf it asks.
const DebugWho = "Causeway-Who"

// DebugError is the body of each answer that is an error.
type DebugError struct {
	Error string `json:"error"`
}
