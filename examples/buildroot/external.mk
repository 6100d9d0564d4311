include $(sort $(wildcard $(BR2_EXTERNAL_QSTAGE_PATH)/package/*/*.mk))
