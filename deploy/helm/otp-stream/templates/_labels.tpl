{{- define "otp-stream.selector" -}}
app.kubernetes.io/name: otp-stream
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "otp-stream.labels" -}}
{{ include "otp-stream.selector" . }}
app.kubernetes.io/component: worker
app.kubernetes.io/part-of: otp-stream
app.kubernetes.io/version: {{ .Chart.AppVersion }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
